// log Z of a checkpoint: the estimate that there is, and the form that asks for one.

import { post } from "./api.js";
import { actionButton, freshId, h, messagePlace } from "./dom.js";
import { fixed } from "./format.js";

/** A calibration's figures. */
export function calibrationTable(calibration) {
  const { log_z: z } = calibration;
  const held = calibration.held_out_log_density;
  const bits = calibration.held_out_bits_per_dim;
  const rows = [
    ["log Z", `${fixed(z.estimate, 3)} ± ${fixed(z.std_error, 3)} nats`],
    ["from below (annealed importance sampling)", `${fixed(z.lower, 3)} ± ${fixed(z.lower_std_error, 3)}`],
    ["from above (the same walk backwards)", `${fixed(z.upper, 3)} ± ${fixed(z.upper_std_error, 3)}`],
    ["asked for, reached", `${fixed(calibration.tolerance, 3)} nats, ${calibration.converged ? "yes" : "no"}`],
    [
      "held-out data",
      held === null ? "–" : `${fixed(held, 2)} nats${bits === null ? "" : `, ${fixed(bits, 3)} bits/dim`}`,
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

function option(label, note, value) {
  const id = freshId("calibrate");
  const input = h("input", { id, inputmode: "numeric", class: "short", value, "aria-describedby": `${id}-note` });
  return {
    element: h(
      "div",
      { class: "field" },
      h("label", { for: id }, label),
      input,
      h("p", { class: "hint", id: `${id}-note` }, note),
    ),
    read() {
      const text = input.value.trim();
      if (!/^\d+$/.test(text)) throw new Error(`${label}: “${input.value}” is not a whole number.`);
      return Number(text);
    },
  };
}

/** Start a calibration of `id@step` and go to its job. */
export function calibrationForm(modelAt, label = "Calibrate") {
  const { element: message, report } = messagePlace();
  const chains = option("Chains", "from 16; more narrow the error of each side", 512);
  const bridges = option(
    "Bridges at most",
    "temperatures between neighbouring noise levels; every round doubles them",
    32,
  );
  const start = async () => {
    const job = await post("/jobs/calibrate", {
      model: modelAt,
      name: "log Z",
      num_chains: chains.read(),
      max_bridges: bridges.read(),
    });
    location.hash = `#/jobs/${job.id}`;
  };
  return h(
    "div",
    {},
    h(
      "details",
      {},
      h("summary", {}, "How thoroughly"),
      h("div", { class: "columns even" }, chains.element, bridges.element),
    ),
    message,
    h("p", { class: "actions" }, actionButton(label, { class: "primary" }, start, report)),
  );
}
