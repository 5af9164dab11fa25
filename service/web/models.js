// All models, newest first, each with its latest samples.

import { get, picture, Refused } from "./api.js";
import { empty, h } from "./dom.js";
import { ago, whole } from "./format.js";

const PAGE = 24;

/** What a model is called. */
export function title(model) {
  return model.name ?? `Model ${model.id.slice(-6)}`;
}

function card(model, signal) {
  const thumbnail = h("div", { class: "thumbnail" });
  const last = model.checkpoints.at(-1);
  if (model.job_id) {
    picture(`/models/${model.id}/samples.png`, { alt: "", class: "pixels" }, signal).then(
      (image) => thumbnail.replaceChildren(image),
      (error) => error instanceof Refused && thumbnail.append(h("span", {}, "no samples yet")),
    );
  } else thumbnail.append(h("span", {}, "imported"));
  return h(
    "li",
    { class: "card model" },
    h("a", { href: `#/models/${model.id}` }, thumbnail, h("h2", {}, title(model))),
    h(
      "p",
      { class: "about" },
      [
        model.dataset ? `on ${model.dataset}` : null,
        last ? `step ${whole(last.step)}` : "no checkpoint yet",
        model.created_at ? ago(model.created_at) : null,
      ]
        .filter(Boolean)
        .join(" · "),
    ),
    last?.calibration ? h("p", { class: "tag" }, "answers with densities") : null,
  );
}

export async function view(root, { signal }) {
  const { models } = await get("/models", signal);
  const list = h("ul", { class: "cards gallery" });
  const more = h("button", { type: "button" }, "Show more");
  let shown = 0;
  const show = () => {
    list.append(...models.slice(shown, shown + PAGE).map((model) => card(model, signal)));
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
