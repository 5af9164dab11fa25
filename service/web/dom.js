// Elements made from plain values. Text always becomes a text node, so that no name of a person or a file becomes HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style")
      for (const [property, text] of Object.entries(value)) element.style.setProperty(property, text);
    else if (name !== "value") element.setAttribute(name, value === true ? "" : value);
  }
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  if (attributes.value !== undefined && attributes.value !== null) element.value = attributes.value; // now that a select has its options
  return element;
}

/** Make an HTML element. `on…` attributes are listeners, `style` an object; null and false leave an attribute out. */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Make an SVG element in the same way. */
export function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** Set a text only when it differs, so that selections and screen readers are left alone. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

let count = 0;

/** Return an id that no other element of the page has. */
export function freshId(prefix) {
  count += 1;
  return `${prefix}-${count}`;
}

/** A message about what went wrong, in the words of the service. */
export function problem(error) {
  return h("p", { class: "problem", role: "alert" }, error.message);
}

/** A notice in place of a list that is empty: what is missing, and what to do. */
export function empty(title, text, ...actions) {
  return h(
    "div",
    { class: "empty" },
    h("h2", {}, title),
    h("p", {}, text),
    actions.length ? h("p", { class: "actions" }, actions) : null,
  );
}

/** A button that cannot be pressed again while its work is under way; `report` gets the error if the work fails. */
export function actionButton(label, attributes, act, report) {
  const button = h("button", { type: "button", ...attributes }, label);
  button.addEventListener("click", async () => {
    button.disabled = true;
    report(null);
    try {
      await act();
    } catch (error) {
      if (error.name !== "AbortError") report(error);
    } finally {
      button.disabled = false;
    }
  });
  return button;
}

/** Ask before something is done that cannot be undone, and return whether the person wants it. */
export function ask(question, consequence, action) {
  const dialog = h(
    "dialog",
    { "aria-labelledby": "question" },
    h(
      "form",
      { method: "dialog" },
      h("h2", { id: "question" }, question),
      h("p", {}, consequence),
      h(
        "p",
        { class: "actions" },
        h("button", { value: "", autofocus: true }, "Keep it"),
        h("button", { class: "primary", value: "yes" }, action),
      ),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
  });
}

/** A place for one message at a time. */
export function messagePlace() {
  const place = h("div", {});
  return { element: place, report: (error) => place.replaceChildren(...(error ? [problem(error)] : [])) };
}
