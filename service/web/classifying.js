// Tell the class of pictures or points by a conditional model: probabilities as bars, and whether any class fits.

import { post } from "./api.js";
import { h, messagePlace } from "./dom.js";
import { eventKind } from "./events.js";
import { fixed, shape } from "./format.js";
import { dropZone, pointsForm, takePictures } from "./scoring.js";

const MAX_BARS = 10;

function bar(name, probability) {
  return h(
    "li",
    {},
    h("span", { class: "name" }, name),
    h("meter", { min: 0, max: 1, value: probability ?? 0, "aria-label": name }),
    h("span", { class: "number" }, probability === null ? "not known" : `${fixed(100 * probability, 1)} %`),
  );
}

function judgement({ none_of_these: none, less_likely: share }) {
  if (none === null) return null;
  return h(
    "p",
    { class: none ? "problem" : "hint" },
    none
      ? "None of these: less likely than nearly all held-out data."
      : `Like the model's data: ${fixed(100 * share, 0)} % of held-out data are less likely.`,
  );
}

function told(item, found, classes) {
  const order = [...classes.keys()].sort((a, b) => (found.probabilities[b] ?? 0) - (found.probabilities[a] ?? 0));
  return h(
    "article",
    { class: "told" },
    h(
      "h3",
      {},
      item.url ? h("img", { src: item.url, alt: "", class: "pixels tiny" }) : null,
      h("span", {}, `${item.name}: ${found.label}`, item.changes ? h("small", {}, item.changes) : null),
    ),
    h(
      "ul",
      { class: "bars" },
      order.slice(0, MAX_BARS).map((index) => bar(classes[index], found.probabilities[index])),
    ),
    judgement(found),
  );
}

export function classifyingPanel(model, modelAt, signal) {
  const { element: message, report } = messagePlace();
  const isImage = eventKind(model.event_shape).hasPixels;
  const place = h("div", { "aria-live": "polite" }, h("p", { class: "hint" }, "The probabilities of the classes appear here."));
  const show = async (items) => {
    place.replaceChildren(h("p", { class: "loading" }, "Looking…"));
    try {
      const answer = await post("/classify", { model: modelAt, x: items.map((item) => item.x) }, { signal });
      place.replaceChildren(
        ...items.map((item, index) => told(item, answer.items[index], answer.classes)),
        h("p", { class: "hint" }, answer.explanation),
      );
    } catch (error) {
      place.replaceChildren();
      throw error;
    }
  };
  const take = takePictures(model.event_shape, "POST /classify", show, report);
  return h(
    "section",
    { class: "panel", "aria-labelledby": "classifying" },
    h("h2", { id: "classifying" }, "Tell the class"),
    h(
      "p",
      {},
      isImage
        ? `Which class is a picture of? Pictures of another size are brought to ${shape(model.event_shape)}.`
        : "Which class is a point of?",
    ),
    h(
      "div",
      { class: "columns" },
      h("div", {}, isImage ? dropZone(take) : pointsForm(model.event_shape[0], show, report), message),
      place,
    ),
  );
}
