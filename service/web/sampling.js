// Draw samples and watch them form, noise level by noise level.

import { picture, save, send, stream } from "./api.js";
import { actionButton, freshId, h, messagePlace, say } from "./dom.js";
import { eventKindOfConfig } from "./events.js";
import { decoded, drawImages, drawPoints, magnified, reach } from "./frames.js";
import { fixed, whole } from "./format.js";
import { QUALITIES, pointOf } from "./frontier.js";
import { hasGrid } from "./jobs.js";

const MAX_SEED = 2 ** 32;

function slider(label, note, { min, max, step, value, format, disabled = false }) {
  const id = freshId("slider");
  const output = h("output", { for: id }, format(value));
  const input = h("input", { id, type: "range", min, max, step, value, disabled, "aria-describedby": `${id}-note` });
  input.addEventListener("input", () => say(output, format(Number(input.value))));
  return {
    element: h(
      "div",
      { class: "field" },
      h("label", { for: id }, label, " ", output),
      input,
      h("p", { class: "hint", id: `${id}-note` }, note),
    ),
    get value() {
      return Number(input.value);
    },
    isOwn: () => Number(input.value) === value,
    reset() {
      input.value = value;
      say(output, format(value));
    },
  };
}

/** A choice among the measured qualities of a checkpoint; null where none were measured. */
function qualityChoice(frontier) {
  if (!frontier) return null;
  const options = QUALITIES.map((quality) => {
    const cost = pointOf(frontier, quality).evaluations;
    return h("option", { value: quality }, `${quality}: ${whole(cost)} evaluations`);
  });
  return h("select", { id: "quality", value: "standard" }, options, h("option", { value: "" }, "my own number of steps"));
}

/** What samples of a conditional model are to be of: a class and how strongly; null for other models. */
function labelControls(classes) {
  if (!classes?.length) return null;
  const choice = h(
    "select",
    { id: "label", value: "every" },
    h("option", { value: "every" }, "every class in turn"),
    h("option", { value: "any" }, "any class, as the data have them"),
    classes.map((name, index) => h("option", { value: index }, name)),
  );
  const guidance = slider("Guidance", "how strongly a class is exaggerated: clearer samples, less variety", {
    min: 0,
    max: 4,
    step: 0.1,
    value: 0,
    format: (value) => fixed(value, 1),
  });
  return {
    element: [h("div", { class: "field" }, h("label", { for: "label" }, "Class"), choice), guidance.element],
    /** The fields of a request, and in how many classes its samples lie in turn. */
    fields() {
      if (choice.value === "any") return { labels: [null] };
      const labels = choice.value === "every" ? {} : { labels: [Number(choice.value)] };
      return { ...labels, guidance: guidance.value };
    },
    inTurn: () => (choice.value === "every" ? classes.length : 1),
    reset: () => guidance.reset(),
  };
}

function controls(config, classes, frontier) {
  const labels = labelControls(classes);
  const kind = eventKindOfConfig(config);
  const own = config.sampling ?? { num_steps: 30, noise_scale: 1 };
  const count = h(
    "select",
    { id: "count", value: kind.usualCount },
    kind.counts.map((one) => h("option", { value: one }, one)),
  );
  const seed = h("input", { id: "seed", inputmode: "numeric", value: "0", class: "short" });
  const dice = h(
    "button",
    { type: "button", onclick: () => (seed.value = Math.floor(Math.random() * MAX_SEED)) },
    "Another seed",
  );
  const steps = slider("Steps a level (K)", "more steps follow the energy more closely, and take longer", {
    min: 0,
    max: Math.max(60, 2 * own.num_steps),
    step: 1,
    value: own.num_steps,
    format: whole,
  });
  const isAdjusted = (config.chain?.kernel ?? "langevin") !== "langevin";
  const note = isAdjusted
    ? `the model's chains are Metropolis-adjusted (${config.chain.kernel}), which need noise of scale 1`
    : "below 1 the chains are colder: cleaner samples, less variety";
  const noise = slider("Noise scale", note, {
    disabled: isAdjusted,
    min: 0,
    max: 1.5,
    step: 0.01,
    value: own.noise_scale,
    format: (value) => fixed(value, 2),
  });
  const quality = qualityChoice(frontier);
  const chainSteps = h("div", {}, steps.element);
  const showOwn = () => (chainSteps.hidden = Boolean(quality?.value));
  quality?.addEventListener("change", showOwn);
  showOwn();
  const reset = h(
    "button",
    { type: "button", class: "link", onclick: () => [steps, noise, labels].forEach((one) => one?.reset()) },
    "The model's own settings",
  );
  return {
    element: [
      h("div", { class: "field" }, h("label", { for: "count" }, "Samples"), count),
      h("div", { class: "field" }, h("label", { for: "seed" }, "Seed"), h("div", { class: "row" }, seed, dice)),
      quality
        ? h(
            "div",
            { class: "field" },
            h("label", { for: "quality" }, "Quality"),
            quality,
            h("p", { class: "hint" }, "evaluations of the network a sample, as measured below"),
          )
        : null,
      labels?.element ?? [],
      chainSteps,
      noise.element,
      h("p", {}, reset),
    ],
    request(model) {
      const text = seed.value.trim();
      if (!/^\d+$/.test(text)) throw new Error(`“${seed.value}” is not a seed; expected a whole number from 0 on.`);
      const body = { model, num_images: Number(count.value), seed: Number(text), scale: 1, ...labels?.fields() };
      if (quality?.value) body.quality = quality.value;
      else if (quality || !steps.isOwn()) body.steps = steps.value;
      if (!noise.isOwn()) body.noise_scale = noise.value;
      return body;
    },
    inTurn: () => labels?.inTurn() ?? 1,
  };
}

/** The samples that take so many labels in turn, label by label. */
function byLabel(samples, inTurn) {
  return Array.from({ length: inTurn }, (_, label) => samples.filter((_, index) => index % inTurn === label)).flat();
}

export function samplingPanel(model, { step, frontier }, signal) {
  const config = model.config ?? {};
  const numLevels = config.schedule?.num_levels ?? 0;
  const form = controls(config, model.classes, frontier);
  const { element: message, report } = messagePlace();
  const first = h(
    "p",
    { class: "hint" },
    "The samples form here, from pure noise down to the data. The same seed always gives the same ones.",
  );
  const canvas = h("canvas", { role: "img", class: "pixels", hidden: true });
  const stage = h("div", { class: "stage" }, first, canvas);
  const caption = h("p", { class: "numbers", role: "status" });
  const scrub = h("input", { id: "level", type: "range", min: 0, max: 0, value: 0 });
  const scrubbing = h("p", { class: "scrub", hidden: true }, h("label", { for: "level" }, "From noise to data"), scrub);
  const downloads = h("p", { class: "actions", hidden: true });
  let frames = [];
  let request = null;
  let inTurn = 1;
  let half = 1;
  let running = null;

  const show = (index) => {
    const frame = frames[index];
    if (!frame) return;
    canvas.hidden = false;
    first.remove();
    if (frame.bitmaps) drawImages(canvas, frame.bitmaps, stage.clientWidth);
    else drawPoints(canvas, frame.values, half);
    canvas.classList.toggle("pixels", Boolean(frame.bitmaps));
    canvas.setAttribute("aria-label", `${request.num_images} samples, ${frame.text}`);
    say(caption, frame.text);
    scrub.setAttribute("aria-valuetext", frame.text);
  };

  const take = async ({ event, data }) => {
    if (event === "problem") throw new Error(data.detail);
    const isResult = event === "result";
    const frame = {
      text: isResult
        ? `done: seed ${data.seed}, ${whole(data.gradient_evaluations)} gradient evaluations per sample`
        : data.level === numLevels
          ? "pure noise"
          : `noise level ${data.level}, ${numLevels - data.level} of ${numLevels}`,
      bitmaps: data.images ? byLabel(await decoded(data.images), inTurn) : null,
      values: data.values ?? null,
    };
    if (frame.values && !frames.length) half = reach(frame.values);
    if (frame.values && reach(frame.values) > half) half = reach(frame.values);
    frames.push(frame);
    scrub.max = frames.length - 1;
    scrub.value = frames.length - 1;
    show(frames.length - 1);
  };

  const offer = () => {
    const name = `${model.name ?? "samples"}-${step}-seed${request.seed}`.replaceAll(/[^\w.-]+/g, "-");
    const fetched =
      (accept, extension, extra = {}) =>
      async () =>
        save(
          await (await send("/sample", { json: { ...request, ...extra }, accept, signal })).blob(),
          `${name}.${extension}`,
        );
    const isImage = frames.at(-1).bitmaps !== null;
    const buttons = [
      actionButton(
        "PNG",
        {},
        async () =>
          save(await magnified(canvas, isImage ? Math.max(1, Math.ceil(512 / canvas.width)) : 1), `${name}.png`),
        report,
      ),
      isImage ? actionButton("Zip of PNGs", {}, fetched("application/zip", "zip"), report) : null,
      actionButton("NumPy", {}, fetched("application/x-npy", "npy"), report),
    ];
    downloads.replaceChildren(h("span", {}, "Download "), ...buttons.filter(Boolean));
    downloads.hidden = false;
  };

  const draw = actionButton(
    "Draw samples",
    { class: "primary", id: "draw" },
    async () => {
      request = form.request(`${model.id}@${step}`);
      inTurn = form.inTurn();
      frames = [];
      scrubbing.hidden = downloads.hidden = true;
      running = new AbortController();
      signal.addEventListener("abort", () => running.abort(), { once: true });
      stop.hidden = false;
      say(caption, "waiting for a sampler");
      try {
        for await (const event of stream("/sample", { json: request, signal: running.signal })) await take(event);
        scrubbing.hidden = false;
        offer();
      } catch (error) {
        say(caption, error.name === "AbortError" ? "stopped" : "");
        throw error;
      } finally {
        stop.hidden = true;
      }
    },
    report,
  );
  const stop = h("button", { type: "button", hidden: true, onclick: () => running.abort() }, "Stop");
  scrub.addEventListener("input", () => show(Number(scrub.value)));
  if (model.job_id && hasGrid(model.config, step)) {
    picture(
      `/models/${model.id}/samples.png`,
      { alt: "Samples drawn while the model trained", class: "pixels" },
      signal,
    ).then(
      (image) => {
        first.prepend(image);
        first.classList.add("preview");
        first.lastChild.textContent =
          "The model drew these while it trained. Draw samples of your own and watch them form, from pure noise down to the data; the same seed always gives the same ones.";
      },
      () => {}, // the text stays
    );
  }

  return h(
    "section",
    { class: "panel sampling", "aria-labelledby": "sampling" },
    h("h2", { id: "sampling" }, "Draw samples"),
    h(
      "div",
      { class: "columns" },
      h("div", { class: "controls" }, form.element, h("p", { class: "actions" }, draw, stop), message),
      h("div", {}, stage, caption, scrubbing, downloads),
    ),
  );
}
