// The events of a training while it runs, as charts and pictures.

import { lineChart } from "./chart.js";
import { h, say } from "./dom.js";
import { whole } from "./format.js";
import { picture } from "./api.js";

const PHASES = {
  score_matching: ["Loss of score matching", "the start: match the slope of the energy"],
  recovery: ["Loss of recovery likelihood", "energy of the data minus energy at the chains' ends"],
};

/** The charts of a training: a loss curve for each phase, and energies by noise level. */
export function curves() {
  const losses = Object.fromEntries(
    Object.entries(PHASES).map(([phase, [title, note]]) => [
      phase,
      { points: [], chart: lineChart({ title, note, xLabel: "step", yLabel: "loss", wide: true }) },
    ]),
  );
  const gaps = lineChart({
    title: "Energy gap by noise level",
    note: "chains minus data, nats; near 0 the chains look like data",
    xLabel: "step",
    yLabel: "nats",
    legend: "levels",
    wide: true,
  });
  const profile = lineChart({
    title: "Energies now",
    note: "by noise level, 0 the cleanest",
    xLabel: "level",
    yLabel: "nats",
    exact: true,
  });
  const acceptance = lineChart({
    title: "Acceptance rate now",
    note: "of proposals, by noise level",
    xLabel: "level",
    yLabel: "share",
    exact: true,
  });
  const waiting = h("p", { class: "hint" }, "Curves appear with the first steps.");
  const energiesWait = h("p", { class: "hint" });
  const element = h("div", { class: "charts" });
  const levels = [];
  let latest = null;
  let shown = "";
  let drawing = false;

  const arrange = () => {
    const wanted = Object.values(losses)
      .filter((one) => one.points.length)
      .map((one) => one.chart.element);
    if (levels.length) wanted.push(gaps.element, profile.element, acceptance.element);
    else if (wanted.length) wanted.push(energiesWait);
    if (!wanted.length) wanted.push(waiting);
    if (wanted.length + String(levels.length > 0) !== shown) element.replaceChildren(...wanted);
    shown = wanted.length + String(levels.length > 0);
  };

  const draw = () => {
    drawing = false;
    arrange();
    for (const { points, chart } of Object.values(losses))
      if (points.length) chart.draw([{ name: "loss", points, class: "one" }]);
    if (!levels.length) return;
    const top = Math.max(1, levels.length - 1);
    gaps.draw(levels.map((points, level) => ({ name: `level ${level}`, points, level: level / top })));
    const by = (values) => values.map((value, level) => [level, value]);
    profile.draw([
      { name: "data", points: by(latest.positive_energy), class: "one" },
      { name: "chains", points: by(latest.negative_energy), class: "two" },
    ]);
    acceptance.draw([{ name: "accepted", points: by(latest.acceptance_rate), class: "one" }]);
  };

  return {
    element,
    /** Take in a `step` event. It is drawn with the next frame, however many come at once. */
    add(data) {
      losses[data.phase]?.points.push([data.step, data.loss]);
      if (data.positive_energy.some((value) => value !== null)) {
        latest = {
          ...data,
          positive_energy: merged(latest?.positive_energy, data.positive_energy),
          negative_energy: merged(latest?.negative_energy, data.negative_energy),
          acceptance_rate: merged(latest?.acceptance_rate, data.acceptance_rate),
        };
        data.positive_energy.forEach((value, level) => {
          levels[level] ??= [];
          if (value !== null && data.negative_energy[level] !== null)
            levels[level].push([data.step, data.negative_energy[level] - value]);
        });
      }
      this.redraw();
    },
    /** Forget everything after a step, because the training went back to it, or started again from it. */
    cut(step) {
      for (const one of [...Object.values(losses).map((loss) => loss.points), ...levels])
        one.splice(0, Infinity, ...one.filter(([at]) => at <= step));
      this.redraw();
    },
    say: (text) => say(energiesWait, text),
    redraw() {
      if (drawing) return;
      drawing = true;
      requestAnimationFrame(draw);
    },
  };
}

/** Merge values by level; a level that had no pair since the last event keeps its value. */
function merged(before, now) {
  return now.map((value, level) => value ?? before?.[level] ?? null);
}

/** The sample grids of a training; the newest is shown, and a slider shows the others. */
export function gridStrip(modelId, signal) {
  const steps = [];
  const frame = h("div", { class: "frame" });
  const label = h("label", {}, "No samples yet: they are drawn while the model trains.");
  const slider = h("input", { type: "range", min: 0, max: 0, value: 0, hidden: true });
  slider.id = "grid-step";
  label.setAttribute("for", slider.id);
  const known = new Map();
  let wanted = null;

  const show = async (step) => {
    wanted = step;
    try {
      if (!known.has(step))
        known.set(
          step,
          await picture(
            `/models/${modelId}/samples.png?step=${step}`,
            { alt: `Samples that the model drew at step ${step}`, class: "pixels grid" },
            signal,
          ),
        );
    } catch (error) {
      if (error.name !== "AbortError" && wanted === step) say(label, error.message);
      return;
    }
    if (wanted !== step) return;
    say(label, `At step ${whole(step)}${steps.length > 1 ? ` (${steps.indexOf(step) + 1} of ${steps.length})` : ""}`);
    frame.replaceChildren(known.get(step));
  };

  slider.addEventListener("input", () => show(steps[Number(slider.value)]));
  return {
    element: h(
      "section",
      { class: "panel", "aria-labelledby": "grid-title" },
      h("h2", { id: "grid-title" }, "Samples"),
      frame,
      h("p", { class: "scrub" }, label, slider),
    ),
    add(step) {
      if (steps.includes(step)) return;
      const atEnd = Number(slider.value) === steps.length - 1 || !steps.length;
      steps.push(step);
      steps.sort((a, b) => a - b);
      slider.max = steps.length - 1;
      slider.hidden = steps.length < 2;
      if (atEnd) {
        slider.value = steps.length - 1;
        clearTimeout(this.timer);
        this.timer = setTimeout(() => show(steps.at(-1)), 60); // many come at once when a run is opened late
      }
    },
  };
}

/** A chart of the two sides of log Z, round by round. */
export function calibrationChart() {
  const chart = lineChart({
    title: "log Z from both sides",
    note: "stochastic lower and upper bound; they close in as bridges double",
    xLabel: "round",
    yLabel: "nats",
    exact: true,
    wide: true,
  });
  const lower = [];
  const upper = [];
  return {
    element: chart.element,
    add(data) {
      if (data.round === 1) [lower, upper].forEach((points) => points.splice(0));
      lower.push([data.round, data.lower]);
      upper.push([data.round, data.upper]);
      requestAnimationFrame(() =>
        chart.draw([
          { name: "lower", points: lower, class: "one" },
          { name: "upper", points: upper, class: "two" },
        ]),
      );
    },
    get isEmpty() {
      return !lower.length;
    },
  };
}
