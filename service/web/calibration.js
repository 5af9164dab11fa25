// log Z of a checkpoint: the figures of an estimate, and the form that starts one.

import { get, post } from "./api.js";
import { actionButton, h, messagePlace } from "./dom.js";
import { labelOf, properties, schemaField } from "./fields.js";
import { fixed, withError } from "./format.js";

const ASKED_OTHERWISE = ["model", "name"];

/** A table of a calibration's figures. */
export function calibrationTable(calibration) {
  const { log_z: z } = calibration;
  const held = calibration.held_out_log_density;
  const bits = calibration.held_out_bits_per_dim;
  const rows = [
    ["log Z, nats", withError(z.estimate, z.std_error, 3)],
    ["from below (chains from the start)", withError(z.lower, z.lower_std_error, 3)],
    ["from above (the same walk backwards)", withError(z.upper, z.upper_std_error, 3)],
    ...(z.data_upper === null
      ? []
      : [["from above (backwards from held-out data)", withError(z.data_upper, z.data_upper_std_error, 3)]]),
    ["tolerance", `${fixed(calibration.tolerance, 3)} nats`],
    ["verdict", calibration.explanation],
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

/** A form that starts a calibration of `id@step` and goes to its job. Its options are fetched when they are opened. */
export function calibrationForm(modelAt, label = "Calibrate") {
  const { element: message, report } = messagePlace();
  const options = h("div", { class: "columns even" });
  const fields = {};
  const show = async () => {
    if (options.children.length) return;
    const { schemas } = (await get("/openapi.json")).components;
    for (const [name, schema] of Object.entries(properties(schemas.CalibrateRequest, schemas))) {
      if (ASKED_OTHERWISE.includes(name)) continue;
      fields[name] = schemaField(name, labelOf(name), schema);
      fields[name].usual(schema.default);
      options.append(fields[name].element);
    }
  };
  const start = async () => {
    const body = { model: modelAt, name: "log Z" };
    let first = null;
    for (const [name, one] of Object.entries(fields)) {
      const found = one.read();
      one.complain(found.wrong);
      if (found.wrong) first ??= one.control;
      if ("value" in found) body[name] = found.value;
    }
    if (first) return first.focus();
    const job = await post("/jobs/calibrate", body);
    location.hash = `#/jobs/${job.id}`;
    return undefined;
  };
  return h(
    "div",
    {},
    h("details", { ontoggle: () => show().catch(report) }, h("summary", {}, "How thoroughly"), options),
    message,
    h("p", { class: "actions" }, actionButton(label, { class: "primary" }, start, report)),
  );
}
