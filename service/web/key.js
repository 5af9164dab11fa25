// The API key of a service that has keys, which is asked for when it is needed and kept for this tab only.

import { h } from "./dom.js";

const PLACE = "recovery-key";

export function currentKey() {
  return sessionStorage.getItem(PLACE);
}

let asking = null;

/** Ask for a key, and end when one was given. Several calls that are refused at the same time ask once. */
export function askForKey(reason) {
  asking ??= new Promise((resolve, reject) => {
    const field = h("input", {
      id: "key",
      type: "password",
      autocomplete: "off",
      spellcheck: "false",
      required: true,
      placeholder: "rk_…",
      "aria-describedby": "key-reason key-note",
    });
    const forget = h(
      "button",
      {
        type: "button",
        onclick: () => {
          sessionStorage.removeItem(PLACE);
          field.value = "";
          field.focus();
        },
      },
      "Forget the key",
    );
    const dialog = h(
      "dialog",
      { class: "key", "aria-labelledby": "key-title" },
      h(
        "form",
        {
          onsubmit: (event) => {
            event.preventDefault();
            sessionStorage.setItem(PLACE, field.value.trim());
            dialog.close("given");
          },
        },
        h("h2", { id: "key-title" }, "API key"),
        h("p", { id: "key-reason" }, reason),
        h("label", { for: "key" }, "Key"),
        field,
        h(
          "p",
          { class: "hint", id: "key-note" },
          "It is kept in this tab until you close it, and sent to this service only.",
        ),
        h(
          "p",
          { class: "actions" },
          h("button", { class: "primary" }, "Use this key"),
          currentKey() ? forget : null,
          h("button", { type: "button", onclick: () => dialog.close() }, "Not now"),
        ),
      ),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      asking = null;
      if (dialog.returnValue === "given") resolve();
      else reject(new Error(reason));
    });
    document.body.append(dialog);
    dialog.showModal();
  });
  return asking;
}
