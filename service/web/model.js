// One model: its checkpoints, its sampling form and its densities.

import { get, picture, send } from "./api.js";
import { calibrationForm, calibrationTable } from "./calibration.js";
import { classifyingPanel } from "./classifying.js";
import { datasetNames } from "./datasets.js";
import { actionButton, ask, h, messagePlace, problem, say } from "./dom.js";
import { ago, bytes, facts, whole } from "./format.js";
import { frontierPanel } from "./frontier.js";
import { title } from "./models.js";
import { samplingPanel } from "./sampling.js";
import { scoringPanel } from "./scoring.js";

function densityMap(model, step, signal) {
  const place = h("div", { class: "frame" }, h("p", { class: "loading" }, "Drawing the map…"));
  picture(
    `/models/${model.id}/density.png?step=${step}`,
    { alt: "Left: the log density of the model over the plane. Right: the data that it was trained on.", class: "map" },
    signal,
  ).then(
    (image) => place.replaceChildren(image),
    (error) => error.name !== "AbortError" && place.replaceChildren(problem(error)),
  );
  return h(
    "section",
    { class: "panel", "aria-labelledby": "map" },
    h("h2", { id: "map" }, "Density beside the data"),
    place,
  );
}

function calibratePanel(modelAt) {
  return h(
    "section",
    { class: "panel", "aria-labelledby": "calibrate" },
    h("h2", { id: "calibrate" }, "Score data"),
    h(
      "p",
      {},
      "This checkpoint cannot say how likely data are yet: its energies are known up to a constant, log Z. " +
        "A calibration estimates it from both sides; on small models that takes minutes.",
    ),
    calibrationForm(modelAt),
  );
}

function calibrationPanel(modelAt, calibration) {
  return h(
    "section",
    { class: "panel", "aria-label": "Calibration" },
    calibrationTable(calibration),
    h("details", {}, h("summary", {}, "Do it again"), calibrationForm(modelAt, "Calibrate again")),
  );
}

/** A form that names and tags a model; `onChanged` gets the changed model. */
function labelForm(model, onChanged, report) {
  const name = h("input", { id: "model-name", maxlength: 100, autocomplete: "off", value: model.name ?? "" });
  const tags = h("input", {
    id: "model-tags",
    autocomplete: "off",
    placeholder: "separated by commas",
    value: model.tags.join(", "),
  });
  const save = async () => {
    const json = { name: name.value.trim() || null, tags: tags.value.split(",").map((tag) => tag.trim()).filter(Boolean) };
    onChanged(await (await send(`/models/${model.id}`, { method: "PATCH", json })).json());
  };
  return h(
    "details",
    {},
    h("summary", {}, "Name and tags"),
    h("p", { class: "field" }, h("label", { for: "model-name" }, "Name"), name),
    h("p", { class: "field" }, h("label", { for: "model-tags" }, "Tags"), tags),
    h("p", { class: "actions" }, actionButton("Save", {}, save, report)),
  );
}

export async function view(root, { id, signal }) {
  const model = await get(`/models/${id}`, signal);
  const { element: message, report } = messagePlace();
  const heading = h("h1", { tabindex: "-1" }, title(model));
  const tags = h("p", { class: "labels" });
  const showLabels = () => {
    say(heading, title(model));
    tags.replaceChildren(...model.tags.map((tag) => h("span", { class: "label" }, tag)));
    tags.hidden = !model.tags.length;
  };
  showLabels();
  const remove = async () => {
    const sizes = model.checkpoints.map((one) => one.size_bytes);
    const what = `${whole(sizes.length)} ${sizes.length === 1 ? "checkpoint" : "checkpoints"}, ${bytes(sizes.reduce((sum, one) => sum + one, 0))}`;
    if (!(await ask(`Delete “${title(model)}”?`, `${what} and all calibrations are gone for good.`, "Delete the model"))) return;
    await send(`/models/${id}`, { method: "DELETE", signal });
    location.hash = "#/models";
  };
  const place = h("div", { class: "panels" });
  const names = await datasetNames(signal);
  const about = facts(
    model.dataset && `trained on ${names.get(model.dataset) ?? model.dataset}`,
    model.origin,
    model.classes?.length && `${whole(model.classes.length)} classes`,
    model.created_at && ago(model.created_at),
  );
  const newest = model.checkpoints.at(-1);
  const choice = h(
    "select",
    { id: "checkpoint" },
    [...model.checkpoints]
      .reverse()
      .map((one) =>
        h(
          "option",
          { value: one.step },
          `step ${whole(one.step)} · ${bytes(one.size_bytes)}${one.calibration ? " · calibrated" : ""}`,
        ),
      ),
  );

  let leaving = null;
  const show = () => {
    leaving?.abort();
    leaving = new AbortController();
    signal.addEventListener("abort", () => leaving.abort(), { once: true });
    const checkpoint = model.checkpoints.find((one) => String(one.step) === choice.value);
    const modelAt = `${model.id}@${checkpoint.step}`;
    const { calibration } = checkpoint;
    const isPlanar = calibration?.event_shape.length === 1 && calibration.event_shape[0] === 2;
    place.replaceChildren(
      samplingPanel(model, checkpoint, leaving.signal),
      frontierPanel(modelAt, checkpoint.frontier),
      ...(isPlanar ? [densityMap(model, checkpoint.step, leaving.signal)] : []),
      ...(model.classes?.length && model.event_shape ? [classifyingPanel(model, modelAt, leaving.signal)] : []),
      calibration ? scoringPanel(modelAt, calibration, leaving.signal) : calibratePanel(modelAt),
      ...(calibration ? [calibrationPanel(modelAt, calibration)] : []),
    );
  };

  if (newest) show();
  else {
    place.append(
      h(
        "div",
        { class: "empty" },
        h("h2", {}, "No checkpoint yet"),
        h("p", {}, "Samples can be drawn once the training has stored its first checkpoint."),
        model.job_id
          ? h(
              "p",
              { class: "actions" },
              h("a", { class: "button primary", href: `#/jobs/${model.job_id}` }, "Watch it train"),
            )
          : null,
      ),
    );
  }
  choice.addEventListener("change", show);
  root.replaceChildren(
    h("p", { class: "crumbs" }, h("a", { href: "#/models" }, "Models")),
    h(
      "div",
      { class: "title" },
      heading,
      h(
        "p",
        { class: "actions" },
        model.job_id ? h("a", { class: "button", href: `#/jobs/${model.job_id}` }, "Its training") : null,
        actionButton("Delete…", {}, remove, report),
      ),
    ),
    message,
    h("p", { class: "about" }, about),
    tags,
    newest ? h("p", { class: "filter" }, h("label", { for: "checkpoint" }, "Checkpoint "), choice) : null,
    place,
    labelForm(
      model,
      (changed) => {
        Object.assign(model, { name: changed.name, tags: changed.tags });
        showLabels();
      },
      report,
    ),
    model.config
      ? h(
          "details",
          {},
          h("summary", {}, "Configuration"),
          h("pre", { tabindex: "0" }, JSON.stringify(model.config, null, 2)),
        )
      : null,
    h("p", { class: "hint" }, "Id ", h("code", {}, model.id)),
  );
}
