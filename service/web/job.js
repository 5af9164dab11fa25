// One job: its progress, its curves and pictures as they come, and the buttons that act on it.

import { follow, get, isOver, pause, post, save, send } from "./api.js";
import { datasetNames } from "./datasets.js";
import { actionButton, ask, h, messagePlace, say } from "./dom.js";
import { ago, duration, facts, fixed, number, whole, withError } from "./format.js";
import { kindOf, progressBar, showStatus, title } from "./jobs.js";
import { calibrationChart, curves, gridStrip } from "./training.js";

const MAX_LOG = 200;

/** Return the line of the log for an event: null if it belongs to a curve, its type if this page does not know it. */
function told({ type, data }) {
  switch (type) {
    case "status":
      return `${data.status}${data.error ? `: ${data.error}` : ""}`;
    case "started":
      return data.step ? `goes on from step ${whole(data.step)}` : `started${data.device ? ` on ${data.device}` : ""}`;
    case "plan":
      return [`planned for ${number(data.minutes)} minutes: ${whole(data.steps)} steps.`, ...data.reasons].join(" ");
    case "batch":
      return `batches of ${whole(data.batch_size)}`;
    case "checkpoint":
      return `checkpoint of step ${whole(data.step)} stored`;
    case "deleted":
      return `older checkpoints deleted: of ${data.steps.length === 1 ? "step" : "steps"} ${data.steps.map((step) => whole(step)).join(", ")}`;
    case "sample":
      return `samples drawn at step ${whole(data.step)}`;
    case "rollback":
      return `diverged at step ${whole(data.step)} (${data.reason}); goes on from step ${whole(data.to_step)} at ${number(data.learning_rate_factor)} of the learning rate`;
    case "health":
      return `health ${inWords(data)}`;
    case "calibration":
      return `round ${data.round}: log Z is ${withError(data.estimate, data.std_error, 2)} nats (sides ${fixed(data.lower, 2)} and ${fixed(data.upper, 2)})`;
    case "calibrated":
      return "calibrated: the model answers with densities now";
    case "tuning":
      return `${data.point.start} with ${whole(data.point.num_steps)} steps, ${whole(data.point.evaluations)} evaluations: Fréchet distance ${number(data.point.frechet)} ± ${number(data.point.frechet_error, 2)}`;
    case "tuned":
      return "tuned: samples are drawn by the settings that were chosen";
    case "shard":
      return `file ${data.index} stored, ${whole(data.num_images)} samples`;
    case "notice":
      return data.text;
    default:
      return type === "step" || type === "sampling" ? null : type;
  }
}

/** Return a verdict on a training as one line. */
function inWords({ level, reason, remedy }) {
  return `${level}: ${reason}${remedy ? ` — ${remedy}` : ""}`;
}

function eventLog() {
  const list = h("ol", { class: "log", tabindex: "0", "aria-label": "Events" });
  const fold = h("details", {}, h("summary", {}, "What happened"), list);
  return {
    element: fold,
    add(event) {
      const text = told(event);
      if (text === null) return;
      list.prepend(h("li", {}, h("time", { datetime: event.at }, new Date(event.at).toLocaleTimeString()), " ", text));
      while (list.children.length > MAX_LOG) list.lastChild.remove();
    },
  };
}

function resumeForm(job, go, report) {
  const steps = h("input", {
    id: "resume-steps",
    inputmode: "numeric",
    class: "short",
    placeholder: whole(job.progress.total_steps || null),
  });
  return h(
    "p",
    { class: "actions" },
    job.kind === "train" ? [h("label", { for: "resume-steps" }, "Training steps in all "), steps] : null,
    actionButton(
      "Resume",
      { class: "primary" },
      () => {
        const text = steps.value.trim().replace(/[\s,]/g, "");
        if (text && !/^\d+$/.test(text))
          throw new Error(`“${steps.value}” is not a whole number of steps; leave the field empty to keep the number.`);
        return go(text ? { steps: Number(text) } : {});
      },
      report,
    ),
  );
}

async function shardList(job, signal, report) {
  const manifest = await get(`/jobs/${job.id}/shards`, signal);
  return h(
    "section",
    { class: "panel", "aria-labelledby": "shards" },
    h("h2", { id: "shards" }, "Files"),
    h("p", {}, `${whole(manifest.num_images)} samples of ${manifest.model}, seed ${manifest.seed}.`),
    h(
      "ul",
      { class: "files" },
      manifest.shards.map((shard) =>
        h(
          "li",
          {},
          actionButton(
            `${shard.name} (${whole(shard.num_images)})`,
            {},
            async () =>
              save(
                await (
                  await send(`/jobs/${job.id}/shards/${Number.parseInt(shard.name, 10)}.npy`, {
                    accept: "application/x-npy",
                    signal,
                  })
                ).blob(),
                shard.name,
              ),
            report,
          ),
        ),
      ),
    ),
  );
}

export async function view(root, { id, signal }) {
  let job = await get(`/jobs/${id}`, signal);
  const names = await datasetNames(signal);
  const heading = h("h1", { tabindex: "-1" }, title(job));
  const status = h("span", { role: "status" });
  const about = h("p", { class: "about" });
  const bar = progressBar();
  const reason = h("p", { class: "problem", hidden: true });
  const health = h("p", { class: "health", hidden: true });
  const actions = h("div", { class: "row" });
  const { element: message, report } = messagePlace();
  const charts = job.kind === "train" ? curves() : null;
  const grids = job.kind === "train" ? gridStrip(job.model_id, signal) : null;
  const bounds = calibrationChart();
  const boundsPlace = h("div", { class: "charts" });
  const files = h("div", {});
  const log = eventLog();
  let drawn = "";
  let hasFiles = false;

  let following;
  const follow_ = () => {
    following = keepFollowing().catch((error) => error.name !== "AbortError" && report(error));
  };

  const remove = async () => {
    const kept = job.kind === "train" ? " The model stays, if it has a checkpoint." : "";
    const wanted = await ask(`Delete “${title(job)}”?`, `Its events, pictures and files are gone for good.${kept}`, "Delete the job");
    if (!wanted) return;
    await following; // of a job that is over it ends by itself, and must not ask for what is gone
    await send(`/jobs/${id}`, { method: "DELETE", signal });
    location.hash = "#/jobs";
  };

  const refresh = () => {
    showStatus(status, job);
    const took =
      job.started_at && job.finished_at ? (new Date(job.finished_at) - new Date(job.started_at)) / 1000 : null;
    say(
      about,
      facts(
        kindOf(job),
        job.dataset && `on ${names.get(job.dataset) ?? job.dataset}`,
        `given ${ago(job.created_at)}`,
        took !== null && `took ${duration(took)}`,
        job.seed !== null && `seed ${job.seed}`,
        job.attempt > 1 && `attempt ${job.attempt}`,
      ),
    );
    bar.update(job);
    say(reason, job.error ?? "");
    reason.hidden = !job.error;
    say(health, job.health ? `Health ${inWords(job.health)}` : "");
    health.className = `health ${job.health?.level ?? ""}`;
    health.hidden = !job.health;
    const state = `${job.status} ${job.cancel_requested} ${job.last_checkpoint !== null}`;
    if (state === drawn) return;
    drawn = state;
    const parts = [];
    if (job.model_id && (job.kind !== "train" || job.last_checkpoint !== null))
      parts.push(
        h("a", { class: `button ${isOver(job) ? "primary" : ""}`, href: `#/models/${job.model_id}` }, "Open the model"),
      );
    if (!isOver(job) && !job.cancel_requested)
      parts.push(
        actionButton(
          "Cancel",
          {},
          async () => {
            job = await post(`/jobs/${id}/cancel`);
            refresh();
          },
          report,
        ),
      );
    if (["failed", "cancelled"].includes(job.status)) {
      parts.push(
        resumeForm(
          job,
          async (body) => {
            job = await post(`/jobs/${id}/resume`, body);
            refresh();
            follow_();
          },
          report,
        ),
      );
    }
    if (isOver(job)) parts.push(actionButton("Delete…", {}, remove, report));
    actions.replaceChildren(...parts);
  };

  const take = (event) => {
    log.add(event);
    const { type, data } = event;
    if (type === "step") charts?.add(data);
    if (type === "started") charts?.cut(data.step);
    if (type === "rollback") charts?.cut(data.to_step);
    if (type === "sample") grids?.add(data.step);
    if (type === "shard") hasFiles = true;
    if (type === "calibration") {
      if (bounds.isEmpty) boundsPlace.append(bounds.element);
      bounds.add(data);
    }
  };

  let newest = "0-0";
  async function keepFollowing() {
    for await (const event of follow(id, signal)) {
      if (!isAfter(event.id, newest)) continue; // after a resumption the stream starts at the beginning
      newest = event.id;
      take(event);
    }
    job = await get(`/jobs/${id}`, signal);
    refresh();
    if (hasFiles && job.status === "succeeded") files.replaceChildren(await shardList(job, signal, report));
  }

  async function keepLooking() {
    for (;;) {
      await pause(isOver(job) ? 5000 : 1000, signal);
      if (document.hidden || isOver(job)) continue;
      job = await get(`/jobs/${id}`, signal).catch((error) => {
        if (error.name === "AbortError") throw error;
        return job;
      });
      refresh();
    }
  }

  refresh();
  if (charts) {
    const start = job.config?.score_matching?.steps ?? 0;
    charts.say(
      start
        ? `Energies by noise level appear when recovery likelihood starts, after ${whole(start)} steps of score matching.`
        : "Energies by noise level appear with the first steps.",
    );
  }
  root.replaceChildren(
    h("p", { class: "crumbs" }, h("a", { href: "#/jobs" }, "Jobs")),
    h("div", { class: "title" }, heading, status),
    about,
    bar.element,
    reason,
    health,
    message,
    actions,
    h(
      "div",
      { class: charts ? "split" : "" },
      charts ? [h("section", { "aria-label": "Curves" }, charts.element, boundsPlace), grids.element] : boundsPlace,
    ),
    files,
    log.element,
    job.config
      ? h(
          "details",
          {},
          h("summary", {}, "Configuration"),
          h("pre", { tabindex: "0" }, JSON.stringify(job.config, null, 2)),
        )
      : null,
    h("p", { class: "hint" }, "Id ", h("code", {}, job.id)),
  );
  follow_();
  keepLooking().catch(() => {});
}

function isAfter(id, other) {
  const [[a, b], [c, d]] = [id.split("-").map(Number), other.split("-").map(Number)];
  return a > c || (a === c && b > d);
}
