// The form that starts a training: a preset, data, a few numbers and, for those who want them, all fields of the
// configuration. The service checks the form as it is filled in.

import { get, idempotencyKey, post, Refused } from "./api.js";
import { configurationFields, setAt, valueAt } from "./configuration.js";
import { contents, title, uploadForm } from "./datasets.js";
import { h, messagePlace, say } from "./dom.js";
import { EVENT_KINDS } from "./events.js";
import { field, labelOf, properties, schemaField } from "./fields.js";
import { whole } from "./format.js";

const CHECK_AFTER_MS = 250;
const OTHER = "…";
const ASKED_OTHERWISE = ["preset", "config", "dataset"];
const FIRST = ["minutes", "name", "steps", "seed"];
const MINUTES = { least: 5, most: 120, usual: 15, step: 5 };
const PLANNED = "images"; // the preset that is planned for a time, in place of a number of steps
const RANDOM = "random";

function presetCards(presets, chosen, onChange) {
  const cards = (these) =>
    h(
      "div",
      { class: "choices" },
      these.map((preset) =>
        h(
          "label",
          { class: "choice" },
          h("input", {
            type: "radio",
            name: "preset",
            value: preset.name,
            checked: preset.name === chosen,
            onchange: () => onChange(preset),
          }),
          h(
            "span",
            {},
            h("strong", {}, preset.name === PLANNED ? "my pictures" : preset.name),
            h("span", {}, preset.summary),
          ),
        ),
      ),
    );
  return h(
    "fieldset",
    {},
    h("legend", {}, "Start from"),
    cards(presets.filter((one) => !one.of_paper)),
    h(
      "details",
      {},
      h("summary", {}, "The paper's experiments"),
      cards(presets.filter((one) => one.of_paper)),
    ),
  );
}

/** Return the slider for the time of a planned training; it has no value while it is hidden. */
function minutesField() {
  const shown = h("output", {}, String(MINUTES.usual));
  const control = h("input", {
    type: "range",
    min: MINUTES.least,
    max: MINUTES.most,
    step: MINUTES.step,
    value: MINUTES.usual,
    oninput: () => say(shown, control.value),
  });
  const one = field("minutes", "Minutes", "the training is planned to end within this time", control);
  control.after(shown);
  return { ...one, usual: () => {}, read: () => (one.element.hidden ? {} : { value: Number(control.value) }) };
}

function datasetOptions(datasets, preset) {
  const group = (label, source) => {
    const these = datasets.filter((one) => one.source === source);
    return these.length
      ? h(
          "optgroup",
          { label },
          these.map((one) => h("option", { value: one.id }, `${title(one)} (${contents(one)})`)),
        )
      : null;
  };
  return [
    h("option", { value: "" }, `the preset's own: ${preset.config.dataset}`),
    group("Uploaded", "uploaded"),
    group("Built in", "built-in"),
    group("In the server's folder", "folder"),
    h("option", { value: OTHER }, "another: s3://…, hf://… or a name"),
  ].filter(Boolean);
}

/** Say in a sentence what the service would train. */
function summary(config) {
  const start = config.score_matching.steps;
  const steps =
    start && start < config.steps
      ? `${whole(config.steps)} steps: ${whole(start)} of score matching, then ${whole(config.steps - start)} of recovery likelihood`
      : start
        ? `${whole(config.steps)} steps of score matching`
        : `${whole(config.steps)} steps of recovery likelihood`;
  return `${steps}; ${config.schedule.num_levels} noise levels, ${config.chain.num_steps} chain steps at each (${config.chain.kernel}), on ${config.dataset}.${config.calibrate ? " Calibrated at the end, so that it answers with densities." : ""}`;
}

/** Return the form's state as a request, and the mistakes in it that the page can find by itself. */
function requestOf({ request, configuration, dataset, other }, preset) {
  const body = { preset: preset.name };
  const wrong = {};
  const config = {};
  const read = (fields, take) =>
    Object.entries(fields).forEach(([path, one]) => {
      const found = one.read();
      if ("value" in found) take(path, found.value);
      if (found.wrong) wrong[path] = found.wrong;
    });
  read(request, (name, value) => {
    body[name] = value;
  });
  read(configuration, (path, value) => setAt(config, path, value));
  if (Object.keys(config).length) body.config = config;
  const { value } = dataset.control;
  const named = value === OTHER ? other.control.value.trim() : value;
  if (named) body.dataset = named;
  else if (value === OTHER) wrong.other = "Give the name or address of a dataset.";
  return { body, wrong };
}

/** Return the field of the form that a refusal is about; paths of the configuration begin below `config`. */
function blamed(location, fields) {
  const names = location.slice(1).filter((one, index) => index > 0 || one !== "config");
  for (let end = names.length; end > 0; end -= 1) {
    const path = names.slice(0, end).join(".");
    if (path in fields) return path;
  }
  return undefined;
}

export async function view(root, { signal, query }) {
  const [{ presets }, listed, { components }] = await Promise.all([
    get("/presets", signal),
    get("/datasets", signal),
    get("/openapi.json", signal),
  ]);
  const { schemas } = components;
  let { datasets } = listed;
  let preset = presets[0];
  const wanted = query.get("dataset");
  const found = datasets.find((one) => one.id === wanted);
  preset = presets.find((one) => one.name === EVENT_KINDS[found?.kind]?.preset) ?? preset;

  const asked = Object.entries(properties(schemas.TrainRequest, schemas)).filter(
    ([name]) => !ASKED_OTHERWISE.includes(name),
  );
  const request = Object.fromEntries(asked.map(([name, schema]) => [name, schemaField(name, labelOf(name), schema)]));
  const { fields: configuration, element: advanced } = configurationFields(schemas, [...Object.keys(request), "dataset"]);
  request.minutes = minutesField();
  const fields = { ...request, ...configuration };
  fields.dataset = field("dataset", "Data", "a tenth is held out, the same tenth every time", h("select", {}));
  fields.other = field(
    "other",
    "Its name or address",
    "s3://bucket/path, hf://owner/name:split/column, or a name in the server's folder",
    h("input", { autocomplete: "off", spellcheck: "false" }),
  );
  const parts = { request, configuration, dataset: fields.dataset, other: fields.other };
  const { element: message, report } = messagePlace();
  const told = h("p", { class: "summary", role: "status" }, "…");
  const submit = h("button", { class: "primary" }, "Start training");
  const key = idempotencyKey();
  let checking = null;
  let timer = null;

  const complain = (wrong) =>
    Object.entries(fields).forEach(([name, one]) => {
      one.complain(wrong[name]);
      // a field that is wrong must not be hidden
      for (let at = wrong[name] && one.element.closest("details"); at; at = at.parentElement.closest("details"))
        at.open = true;
    });

  const refused = (error) => {
    if (!(error instanceof Refused) || error.status !== 422) return report(error);
    const wrong = {};
    for (const { location, message: text } of error.fields) {
      const name = blamed(location, fields);
      if (name)
        wrong[name === "dataset" && fields.dataset.control.value === OTHER ? "other" : name] =
          `${text[0].toUpperCase()}${text.slice(1)}.`;
    }
    complain(wrong);
    report(Object.keys(wrong).length ? null : error);
    return undefined;
  };

  /** Ask the service what it would train, and show only the answer to the newest question. */
  const check = async () => {
    const { body, wrong } = requestOf(parts, preset);
    complain(wrong);
    checking?.abort();
    if (Object.keys(wrong).length) return say(told, "Some fields need another look.");
    checking = new AbortController();
    try {
      const { config, plan } = await post("/jobs/train/check", body, { signal: checking.signal });
      const planned = body.preset === PLANNED;
      say(told, planned ? [...plan, "The trainer adds the number of steps."].join(" ") : summary(config));
      complain({});
      report(null);
    } catch (error) {
      if (error.name === "AbortError") return undefined;
      say(told, "Some fields need another look.");
      refused(error);
    }
    return undefined;
  };
  const checkSoon = () => {
    clearTimeout(timer);
    timer = setTimeout(check, CHECK_AFTER_MS);
  };

  const arrange = () => {
    const { value } = fields.dataset.control;
    fields.dataset.control.replaceChildren(...datasetOptions(datasets, preset));
    fields.dataset.control.value = [...fields.dataset.control.options].some((one) => one.value === value) ? value : "";
    fields.other.element.hidden = fields.dataset.control.value !== OTHER;
    const planned = preset.name === PLANNED;
    request.minutes.element.hidden = !planned;
    request.steps.element.hidden = planned;
    upload.open ||= planned;
    for (const [path, one] of Object.entries(parts.configuration)) one.usual(valueAt(preset.config, path));
    for (const [name, schema] of asked) request[name].usual(preset.config[name] ?? schema.default);
    request.seed.usual(RANDOM);
  };

  const upload = h(
    "details",
    {},
    h("summary", {}, "Upload data of your own"),
    uploadForm((dataset) => {
      datasets = [dataset, ...datasets.filter((one) => one.id !== dataset.id)];
      arrange();
      fields.dataset.control.value = dataset.id;
      check();
    }, signal),
  );
  const form = h(
    "form",
    { novalidate: true, class: "panel train" },
    presetCards(presets, preset.name, (chosen) => {
      preset = chosen;
      arrange();
      checkSoon();
    }),
    h(
      "div",
      { class: "columns even" },
      h("div", { class: "double" }, fields.dataset.element, fields.other.element),
      FIRST.map((name) => request[name].element),
    ),
    upload,
    h(
      "details",
      {},
      h("summary", {}, "More settings"),
      h(
        "div",
        { class: "columns even" },
        asked.filter(([name]) => !FIRST.includes(name)).map(([name]) => request[name].element),
      ),
      h(
        "details",
        {},
        h("summary", {}, "Advanced: every field of the configuration"),
        h("p", { class: "hint" }, "A field that is left alone has the preset's value."),
        advanced,
      ),
    ),
    told,
    message,
    h("p", { class: "actions" }, submit),
  );

  form.addEventListener("input", (event) => {
    if (event.target === fields.dataset.control) fields.other.element.hidden = event.target.value !== OTHER;
    if (event.target.name !== "preset") checkSoon();
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    clearTimeout(timer);
    const { body, wrong } = requestOf(parts, preset);
    complain(wrong);
    if (Object.keys(wrong).length) return form.querySelector("[aria-invalid]")?.focus();
    submit.disabled = true;
    try {
      const job = await post("/jobs/train", body, { headers: { "idempotency-key": `${key}-${digest(body)}` }, signal });
      location.hash = `#/jobs/${job.id}`;
    } catch (error) {
      if (error.name !== "AbortError") refused(error);
      form.querySelector("[aria-invalid]")?.focus();
    } finally {
      submit.disabled = false;
    }
    return undefined;
  });

  arrange();
  if (wanted) {
    fields.dataset.control.value = found ? wanted : OTHER;
    if (!found) fields.other.control.value = wanted;
    fields.other.element.hidden = Boolean(found);
  }
  root.replaceChildren(h("div", { class: "title" }, h("h1", { tabindex: "-1" }, "Train a model")), form);
  check();
}

/** Return a short digest of a request: the same form sent twice makes one job, and a changed form makes another. */
function digest(body) {
  let mark = 5381;
  for (const one of JSON.stringify(body)) mark = (Math.imul(mark, 33) ^ one.codePointAt(0)) >>> 0;
  return mark.toString(16);
}
