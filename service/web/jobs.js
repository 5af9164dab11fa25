// All jobs, newest first, with their progress.

import { get, isOver, pause, picture } from "./api.js";
import { datasetNames } from "./datasets.js";
import { empty, h, problem, say } from "./dom.js";
import { eventKindOfConfig } from "./events.js";
import { ago, duration, facts, number, whole } from "./format.js";

/** The name of each kind of job, and what its progress counts. A kind that is not here is shown by the API's name. */
const KINDS = {
  train: { name: "Training", unit: "steps" },
  calibrate: { name: "Calibration", unit: "rounds" },
  tune: { name: "Tuning", unit: "settings" },
  sample: { name: "Bulk sampling", unit: "samples" },
};
const MARKS = { queued: "○", running: "◐", succeeded: "✓", failed: "✕", cancelled: "–" };
const BUSY_MS = 1500;
const IDLE_MS = 8000;

/** Return the name under which a job is shown. */
export function title(job) {
  return job.name ?? `${kindOf(job)} ${job.id.slice(-6)}`;
}

/** Return the kind of a job in words. */
export function kindOf(job) {
  return KINDS[job.kind]?.name ?? job.kind;
}

/** Show a status in an element, by sign, word and colour. */
export function showStatus(element, job) {
  const word = job.cancel_requested && !isOver(job) ? "stopping" : job.status;
  element.className = `status ${job.status}`;
  say(element, `${MARKS[job.status] ?? ""} ${word}`);
}

/** A bar that shows how far a job has come. */
export function progressBar() {
  const bar = h("progress", { max: 100, value: 0, "aria-label": "Progress" });
  const text = h("span", { class: "numbers" });
  return {
    element: h("div", { class: "progress" }, bar, text),
    update(job) {
      bar.hidden = isOver(job);
      bar.value = job.status === "succeeded" ? 100 : job.progress.percent;
      say(text, told(job));
    },
  };
}

function told(job) {
  const { step, total_steps: total, steps_per_second: rate, eta_seconds: eta, queue_position: place } = job.progress;
  if (job.status === "queued") return place ? `${place === 1 ? "next" : `${place}.`} in the queue` : "waiting";
  const steps = total ? `${whole(step)} of ${whole(total)} ${KINDS[job.kind]?.unit ?? ""}`.trim() : "starting";
  if (job.status !== "running" || !total) return steps;
  return facts(
    steps,
    rate && job.kind === "train" && `${number(rate, 2)} a second`,
    eta !== null && `${duration(eta)} left`,
  );
}

/** Say whether a training that has a checkpoint of that step has drawn a grid of samples. */
export function hasGrid(config, checkpoint) {
  return (
    Boolean(config) &&
    checkpoint !== null &&
    checkpoint !== undefined &&
    checkpoint >= Math.min(config.sample_every, config.steps)
  );
}

/** The latest sample grid of a training. */
function thumbnail(signal) {
  const element = h("div", { class: "thumbnail small", "aria-hidden": "true" });
  let shown = null;
  return {
    element,
    update(job) {
      element.hidden = job.kind !== "train";
      if (element.hidden || job.last_checkpoint === shown || !hasGrid(job.config, job.last_checkpoint)) return;
      shown = job.last_checkpoint;
      picture(
        `/models/${job.model_id}/samples.png`,
        { alt: "", class: eventKindOfConfig(job.config).hasPixels ? "corner" : "whole" },
        signal,
      ).then(
        (image) => element.replaceChildren(image),
        () => {}, // the row says enough without the picture
      );
    },
  };
}

function row(names, signal) {
  const link = h("a", {});
  const status = h("span", {});
  const about = h("p", { class: "about" });
  const bar = progressBar();
  const image = thumbnail(signal);
  const error = h("p", { class: "reason" });
  return {
    element: h(
      "li",
      { class: "card job" },
      image.element,
      h("div", { class: "body" }, h("div", { class: "head" }, h("h2", {}, link), status), about, bar.element, error),
    ),
    update(job) {
      link.setAttribute("href", `#/jobs/${job.id}`);
      say(link, title(job));
      showStatus(status, job);
      const dataset = job.dataset && `on ${names.get(job.dataset) ?? job.dataset}`;
      say(
        about,
        facts(kindOf(job), dataset, ago(job.created_at), job.last_loss !== null && `loss ${number(job.last_loss)}`),
      );
      bar.update(job);
      image.update(job);
      say(error, job.error ?? "");
      error.hidden = !job.error;
    },
  };
}

function invitation() {
  return empty(
    "Nothing has been trained here yet",
    "Train on the built-in handwritten digits to see the whole way in a few minutes, or upload pictures of your own.",
    h("a", { class: "button primary", href: "#/train" }, "Train a model"),
    h("a", { class: "button", href: "#/datasets" }, "Upload a dataset"),
  );
}

export async function view(root, { signal }) {
  const list = h("ul", { class: "cards" });
  const more = h("button", { type: "button", hidden: true }, "Show older jobs");
  const trouble = h("div", {});
  const status = h(
    "select",
    { id: "status" },
    h("option", { value: "" }, "all"),
    Object.keys(MARKS).map((one) => h("option", {}, one)),
  );
  const nothing = h("div", {});
  const rows = new Map();
  const names = await datasetNames(signal);
  let said = null;
  let older = [];
  let cursor = null;

  const show = (jobs) => {
    for (const job of jobs) {
      if (!rows.has(job.id)) rows.set(job.id, row(names, signal));
      rows.get(job.id).update(job);
    }
    const wanted = jobs.map((job) => rows.get(job.id).element);
    if (wanted.length !== list.children.length || wanted.some((element, index) => element !== list.children[index]))
      list.replaceChildren(...wanted);
    const missing = jobs.length ? "nothing" : status.value;
    if (missing === said) return; // writing it again would lose the focus
    said = missing;
    nothing.replaceChildren(
      ...(jobs.length ? [] : [missing ? empty("None of these", `No job is ${missing} now.`) : invitation()]),
    );
  };

  const load = async () => {
    const page = await get(`/jobs?limit=30${status.value ? `&status=${status.value}` : ""}`, signal);
    if (!older.length) cursor = page.next_cursor;
    const newest = new Set(page.jobs.map((job) => job.id));
    show([...page.jobs, ...older.filter((job) => !newest.has(job.id))]);
    more.hidden = cursor === null;
    return page.jobs.some((job) => !isOver(job));
  };
  const reload = () =>
    load().then(
      () => trouble.replaceChildren(),
      (error) => error.name !== "AbortError" && trouble.replaceChildren(problem(error)),
    );

  more.addEventListener("click", async () => {
    const page = await get(`/jobs?limit=30&cursor=${cursor}${status.value ? `&status=${status.value}` : ""}`, signal);
    older = [...older, ...page.jobs];
    cursor = page.next_cursor;
    await reload();
  });
  status.addEventListener("change", () => {
    older = [];
    reload();
  });

  let busy = await load();
  root.replaceChildren(
    h(
      "div",
      { class: "title" },
      h("h1", { tabindex: "-1" }, "Jobs"),
      h("p", { class: "filter" }, h("label", { for: "status" }, "Show "), status),
    ),
    trouble,
    nothing,
    list,
    h("p", {}, more),
  );
  const keepOn = async () => {
    for (;;) {
      await pause(busy ? BUSY_MS : IDLE_MS, signal);
      if (document.hidden) continue;
      try {
        busy = await load();
        trouble.replaceChildren();
      } catch (error) {
        if (error.name === "AbortError") return;
        trouble.replaceChildren(problem(error));
      }
    }
  };
  keepOn().catch(() => {});
}
