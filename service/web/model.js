// One model: its checkpoints, sampling, densities.

import { get, picture, post } from "./api.js";
import { actionButton, h, messagePlace, problem } from "./dom.js";
import { ago, bytes, fixed, whole } from "./format.js";
import { title } from "./models.js";
import { samplingPanel } from "./sampling.js";
import { scoringPanel } from "./scoring.js";

function calibrationTable(calibration) {
  const { log_z: z } = calibration;
  const rows = [
    ["log Z", `${fixed(z.estimate, 3)} ± ${fixed(z.std_error, 3)} nats`],
    ["from below (annealed importance sampling)", `${fixed(z.lower, 3)} ± ${fixed(z.lower_std_error, 3)}`],
    ["from above (the same walk backwards)", `${fixed(z.upper, 3)} ± ${fixed(z.upper_std_error, 3)}`],
    ["asked for, reached", `${fixed(calibration.tolerance, 3)} nats, ${calibration.converged ? "yes" : "no"}`],
    [
      "held-out data",
      calibration.held_out_log_density === null
        ? "–"
        : `${fixed(calibration.held_out_log_density, 2)} nats${calibration.held_out_bits_per_dim === null ? "" : `, ${fixed(calibration.held_out_bits_per_dim, 3)} bits/dim`}`,
    ],
  ];
  return h(
    "table",
    {},
    h("caption", {}, "Calibration"),
    h(
      "tbody",
      {},
      rows.map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, value))),
    ),
  );
}

function calibratePanel(modelAt, { report, element }) {
  return h(
    "section",
    { class: "panel", "aria-labelledby": "calibrate" },
    h("h2", { id: "calibrate" }, "Score data"),
    h(
      "p",
      {},
      "This checkpoint cannot say how likely a picture is yet: its energies are known up to a constant, log Z. A calibration estimates it from both sides; on small models that takes minutes.",
    ),
    element,
    h(
      "p",
      { class: "actions" },
      actionButton(
        "Calibrate",
        { class: "primary" },
        async () => {
          const job = await post("/jobs/calibrate", { model: modelAt, name: "log Z" });
          location.hash = `#/jobs/${job.id}`;
        },
        report,
      ),
    ),
  );
}

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

export async function view(root, { id, signal }) {
  const model = await get(`/models/${id}`, signal);
  const place = h("div", { class: "panels" });
  const about = [
    model.dataset ? `trained on ${model.dataset}` : null,
    model.origin,
    model.created_at ? ago(model.created_at) : null,
  ]
    .filter(Boolean)
    .join(" · ");
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
      samplingPanel(model, checkpoint.step, leaving.signal),
      ...(isPlanar ? [densityMap(model, checkpoint.step, leaving.signal)] : []),
      calibration ? scoringPanel(modelAt, calibration, leaving.signal) : calibratePanel(modelAt, messagePlace()),
      ...(calibration ? [h("section", { class: "panel" }, calibrationTable(calibration))] : []),
    );
  };

  if (newest) show();
  else {
    place.append(
      h(
        "div",
        { class: "empty" },
        h("h2", {}, "No checkpoint yet"),
        h("p", {}, "There is something to sample from once the training has stored its first checkpoint."),
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
      h("h1", { tabindex: "-1" }, title(model)),
      model.job_id ? h("a", { class: "button", href: `#/jobs/${model.job_id}` }, "Its training") : null,
    ),
    h("p", { class: "about" }, about),
    newest ? h("p", { class: "filter" }, h("label", { for: "checkpoint" }, "Checkpoint "), choice) : null,
    place,
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
