// All models, newest first, each with its latest samples.

import { get, picture, Refused } from "./api.js";
import { datasetNames } from "./datasets.js";
import { empty, h } from "./dom.js";
import { eventKindOfConfig } from "./events.js";
import { ago, facts, whole } from "./format.js";
import { hasGrid } from "./jobs.js";

const PAGE = 24;

/** Return the name under which a model is shown. */
export function title(model) {
  return model.name ?? `Model ${model.id.slice(-6)}`;
}

function card(model, names, signal) {
  const thumbnail = h("div", { class: "thumbnail" });
  const last = model.checkpoints.at(-1);
  const nothing = model.origin ? "imported" : "no samples yet";
  if (model.job_id && hasGrid(model.config, last?.step)) {
    picture(`/models/${model.id}/samples.png`, { alt: "", class: eventKindOfConfig(model.config).hasPixels ? "pixels" : "whole" }, signal).then(
      (image) => thumbnail.replaceChildren(image),
      (error) => error instanceof Refused && thumbnail.append(h("span", {}, nothing)),
    );
  } else thumbnail.append(h("span", {}, nothing));
  return h(
    "li",
    { class: "card model" },
    h("a", { href: `#/models/${model.id}` }, thumbnail, h("h2", {}, title(model))),
    h(
      "p",
      { class: "about" },
      facts(
        model.dataset && `on ${names.get(model.dataset) ?? model.dataset}`,
        last ? `step ${whole(last.step)}` : "no checkpoint yet",
        model.created_at && ago(model.created_at),
      ),
    ),
    model.tags.length ? h("p", { class: "labels" }, model.tags.map((tag) => h("span", { class: "label" }, tag))) : null,
    last?.calibration ? h("p", { class: "tag" }, "answers with densities") : null,
  );
}

export async function view(root, { signal }) {
  const [{ models }, names] = await Promise.all([get("/models", signal), datasetNames(signal)]);
  const list = h("ul", { class: "cards gallery" });
  const more = h("button", { type: "button" }, "Show more");
  let shown = 0;
  const show = () => {
    list.append(...models.slice(shown, shown + PAGE).map((model) => card(model, names, signal)));
    shown += PAGE;
    more.hidden = shown >= models.length;
  };
  more.addEventListener("click", show);
  show();
  root.replaceChildren(
    h("div", { class: "title" }, h("h1", { tabindex: "-1" }, "Models")),
    models.length
      ? list
      : empty(
          "There is no model yet",
          "A training makes one with its first checkpoint; checkpoints of the authors' release can be imported on the command line.",
          h("a", { class: "button primary", href: "#/train" }, "Train a model"),
        ),
    h("p", {}, more),
  );
}
