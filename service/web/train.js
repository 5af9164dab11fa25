// Start a training: a preset, data, a few numbers; the service checks the form as it is filled in.

import { get, idempotencyKey, post, Refused } from "./api.js";
import { contents, title, uploadForm } from "./datasets.js";
import { h, messagePlace, say } from "./dom.js";
import { EVENT_KINDS } from "./events.js";
import { whole } from "./format.js";

const CHECK_AFTER_MS = 250;
const NUMBERS = {
  steps: ["Steps", "of training in all"],
  seed: ["Seed", "decides weights, batches and noise; drawn when empty"],
  batch_size: ["Batch size", "pairs a step"],
  checkpoint_every: ["Checkpoint every", "steps"],
  sample_every: ["Draw samples every", "steps"],
};
const OTHER = "…";

function field(name, label, note, control) {
  const id = `train-${name}`;
  const error = h("p", { class: "field-error", id: `${id}-error`, hidden: true });
  control.id = id;
  control.setAttribute("name", name);
  control.setAttribute("aria-describedby", `${id}-error ${id}-note`);
  return {
    control,
    element: h(
      "div",
      { class: "field" },
      h("label", { for: id }, label),
      control,
      error,
      h("p", { class: "hint", id: `${id}-note` }, note),
    ),
    complain(text) {
      say(error, text ?? "");
      error.hidden = !text;
      if (text) control.setAttribute("aria-invalid", "true");
      else control.removeAttribute("aria-invalid");
    },
  };
}

function numberField(name) {
  const [label, note] = NUMBERS[name];
  return field(name, label, note, h("input", { inputmode: "numeric", autocomplete: "off" }));
}

function presetCards(presets, chosen, onChange) {
  return h(
    "fieldset",
    {},
    h("legend", {}, "Start from"),
    h(
      "div",
      { class: "choices" },
      presets.map((preset) =>
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
          h("span", {}, h("strong", {}, preset.name), h("span", {}, preset.summary)),
        ),
      ),
    ),
  );
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

/** What the service would train, in a sentence. */
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

/** A form's state as a request, and what is wrong with it as far as the page can tell. */
function requestOf(fields, preset) {
  const body = { preset: preset.name };
  const wrong = {};
  for (const name of Object.keys(NUMBERS)) {
    const text = fields[name].control.value.trim().replace(/[\s,]/g, "");
    if (!text) continue;
    if (/^\d+$/.test(text) && Number.isSafeInteger(Number(text))) body[name] = Number(text);
    else
      wrong[name] =
        `“${fields[name].control.value.trim()}” is not a whole number; expected digits, or an empty field for the preset's.`;
  }
  const { value } = fields.dataset.control;
  const dataset = value === OTHER ? fields.other.control.value.trim() : value;
  if (dataset) body.dataset = dataset;
  else if (value === OTHER) wrong.other = "Give the name or address of a dataset.";
  const name = fields.name.control.value.trim();
  if (name) body.name = name;
  if (fields.calibrate.control.value) body.calibrate = fields.calibrate.control.value === "yes";
  body.device = fields.device.control.value;
  return { body, wrong };
}

export async function view(root, { signal, query }) {
  const [{ presets }, listed] = await Promise.all([get("/presets", signal), get("/datasets", signal)]);
  let { datasets } = listed;
  let preset = presets[0];
  const wanted = query.get("dataset");
  const found = datasets.find((one) => one.id === wanted);
  preset = presets.find((one) => one.name === EVENT_KINDS[found?.kind]?.preset) ?? preset;

  const fields = Object.fromEntries(Object.keys(NUMBERS).map((name) => [name, numberField(name)]));
  fields.name = field(
    "name",
    "Name",
    "for you and others; any text",
    h("input", { maxlength: 100, autocomplete: "off" }),
  );
  fields.dataset = field("dataset", "Data", "a tenth is held out, the same tenth every time", h("select", {}));
  fields.other = field(
    "other",
    "Its name or address",
    "s3://bucket/path, hf://owner/name:split/column, or a name in the server's folder",
    h("input", { autocomplete: "off", spellcheck: "false" }),
  );
  fields.calibrate = field(
    "calibrate",
    "Calibrate at the end",
    "needed to score data; takes a few minutes more",
    h(
      "select",
      {},
      h("option", { value: "" }, "as the preset"),
      h("option", { value: "yes" }, "yes"),
      h("option", { value: "no" }, "no"),
    ),
  );
  fields.device = field(
    "device",
    "Device",
    "auto takes a GPU when the trainer has one",
    h(
      "select",
      {},
      ["auto", "cpu", "cuda"].map((one) => h("option", {}, one)),
    ),
  );
  const { element: message, report } = messagePlace();
  const told = h("p", { class: "summary", role: "status" }, "…");
  const submit = h("button", { class: "primary" }, "Start training");
  const key = idempotencyKey();
  let checking = null;
  let timer = null;

  const complain = (wrong) => Object.entries(fields).forEach(([name, one]) => one.complain(wrong[name]));

  const refused = (error) => {
    if (!(error instanceof Refused) || error.status !== 422) return report(error);
    const wrong = {};
    for (const { location, message: text } of error.fields) {
      const name = location.findLast((part) => part in fields);
      if (name)
        wrong[name === "dataset" && fields.dataset.control.value === OTHER ? "other" : name] =
          `${text[0].toUpperCase()}${text.slice(1)}.`;
    }
    complain(wrong);
    report(Object.keys(wrong).length ? null : error);
    return undefined;
  };

  /** Ask the service what it would train; the newest question counts. */
  const check = async () => {
    const { body, wrong } = requestOf(fields, preset);
    complain(wrong);
    checking?.abort();
    if (Object.keys(wrong).length) return say(told, "Some fields need another look.");
    checking = new AbortController();
    try {
      const { config } = await post("/jobs/train/check", body, { signal: checking.signal });
      say(told, summary(config));
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
    for (const name of ["steps", "batch_size", "checkpoint_every", "sample_every"])
      fields[name].control.placeholder = whole(preset.config[name]);
    fields.seed.control.placeholder = "random";
  };

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
      h("div", {}, fields.dataset.element, fields.other.element),
      fields.name.element,
      fields.steps.element,
      fields.seed.element,
    ),
    h(
      "details",
      {},
      h("summary", {}, "Upload data of your own"),
      uploadForm((dataset) => {
        datasets = [dataset, ...datasets.filter((one) => one.id !== dataset.id)];
        arrange();
        fields.dataset.control.value = dataset.id;
        check();
      }, signal),
    ),
    h(
      "details",
      {},
      h("summary", {}, "More settings"),
      h(
        "div",
        { class: "columns even" },
        fields.batch_size.element,
        fields.checkpoint_every.element,
        fields.sample_every.element,
        fields.calibrate.element,
        fields.device.element,
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
    const { body, wrong } = requestOf(fields, preset);
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

/** A short mark of a request, so that the same form sent twice is one job and a changed one another. */
function digest(body) {
  let mark = 5381;
  for (const one of JSON.stringify(body)) mark = (Math.imul(mark, 33) ^ one.codePointAt(0)) >>> 0;
  return mark.toString(16);
}
