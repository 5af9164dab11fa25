// What samples of a checkpoint cost and how good they are: a chart, a table, and the button that measures.

import { post } from "./api.js";
import { ticks } from "./chart.js";
import { actionButton, h, messagePlace, s } from "./dom.js";
import { fixed, number, whole } from "./format.js";

export const QUALITIES = ["draft", "standard", "best"];
const HEIGHT = 240;
const LEAST_WIDTH = 260;
const MARGIN = { top: 30, right: 24, bottom: 36, left: 56 };
const [LETTER, LINE] = [7.2, 14]; // of a name in the chart, wide and high

const isOf = (point, setting) => point.start === setting.start && point.num_steps === setting.num_steps;

/** Return the measured point of a quality. */
export function pointOf(frontier, quality) {
  return frontier.points.find((point) => isOf(point, frontier[quality]));
}

const namesOf = (frontier, point) => QUALITIES.filter((quality) => isOf(point, frontier[quality]));

/** A chart of evaluations, on a log axis, against the Fréchet distance with its error, the three qualities marked. */
function frontierChart(frontier) {
  const told = QUALITIES.map((quality) => {
    const point = pointOf(frontier, quality);
    return `${quality} ${whole(point.evaluations)} evaluations, distance ${number(point.frechet)}`;
  });
  const plot = s("svg", { role: "img", class: "plot frontier", height: HEIGHT, "aria-label": `${told.join("; ")}.` });
  new ResizeObserver(() => {
    const width = Math.max(LEAST_WIDTH, plot.clientWidth);
    plot.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    plot.replaceChildren(...drawn(frontier, width));
  }).observe(plot);
  return plot;
}

function drawn(frontier, width) {
  const { points } = frontier;
  const costs = points.map((point) => Math.log(point.evaluations));
  const [left, right] = [Math.min(...costs) - 0.15, Math.max(...costs) + 0.15];
  const top = Math.max(...points.map((point) => point.frechet + point.frechet_error)) * 1.08;
  const x = (evaluations) =>
    MARGIN.left + ((Math.log(evaluations) - left) / (right - left)) * (width - MARGIN.left - MARGIN.right);
  const y = (value) => MARGIN.top + (1 - value / top) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  const place = namePlaces(width);
  const marks = points.map((point) => {
    const [px, name] = [x(point.evaluations), namesOf(frontier, point).join(", ")];
    const low = Math.max(0, point.frechet - point.frechet_error);
    const high = y(point.frechet + point.frechet_error);
    return s(
      "g",
      { class: name ? "chosen" : "" },
      s("line", { x1: px, x2: px, y1: y(low), y2: high }),
      s("circle", { cx: px, cy: y(point.frechet), r: name ? 5 : 3 }),
      name ? s("text", { ...place(name, px, Math.min(high, y(point.frechet) - 5) - 5), "text-anchor": "middle" }, name) : null,
    );
  });
  const yTicks = ticks(0, top, 4);
  const xTicks = [...new Set(points.map((point) => point.evaluations))];
  return [
    s("g", { class: "grid" }, yTicks.map((value) => s("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }))),
    s(
      "g",
      { class: "labels" },
      yTicks.map((value) => s("text", { x: MARGIN.left - 8, y: y(value) + 4, "text-anchor": "end" }, number(value))),
      apart(xTicks, x).map((value) =>
        s("text", { x: x(value), y: HEIGHT - MARGIN.bottom + 17, "text-anchor": "middle" }, whole(value)),
      ),
      s("text", { x: width - MARGIN.right, y: HEIGHT - 3, "text-anchor": "end", class: "axis" }, "evaluations a sample"),
      s("text", { x: 0, y: 11, class: "axis" }, "Fréchet distance"),
    ),
    s("g", { class: "points" }, marks),
  ];
}

/** Return a function that places names: inside the chart, and above the names that they would run into. */
function namePlaces(width) {
  const taken = [];
  return (name, x, y) => {
    const half = (name.length * LETTER) / 2;
    const found = { x: Math.max(half, Math.min(x, width - half)), y };
    const hits = (one) => Math.abs(one.x - found.x) < one.half + half && Math.abs(one.y - found.y) < LINE - 1;
    for (let one; (one = taken.find(hits)); ) found.y = one.y - LINE;
    taken.push({ ...found, half });
    return found;
  };
}

/** Return the values whose labels do not run into each other. */
function apart(values, x) {
  const kept = [];
  for (const value of values) if (!kept.length || x(value) - x(kept.at(-1)) > 36) kept.push(value);
  return kept;
}

function frontierTable(frontier) {
  const headings = ["Evaluations", "Start", "Steps a level (K)", "Fréchet distance", "1-NN accuracy", "Quality"];
  return h(
    "table",
    {},
    h("caption", { class: "visually-hidden" }, "Settings that were measured"),
    h("thead", {}, h("tr", {}, headings.map((heading) => h("th", { scope: "col" }, heading)))),
    h(
      "tbody",
      {},
      frontier.points.map((point) =>
        h(
          "tr",
          {},
          h("th", { scope: "row" }, whole(point.evaluations)),
          h("td", {}, point.start),
          h("td", {}, whole(point.num_steps)),
          h("td", {}, `${number(point.frechet)} ± ${number(point.frechet_error, 2)}`),
          h("td", {}, `${fixed(point.one_nn, 3)} ± ${fixed(point.one_nn_error, 3)}`),
          h("td", {}, namesOf(frontier, point).join(", ")),
        ),
      ),
    ),
  );
}

/** The panel of a checkpoint's frontier, or, where there is none, of the button that measures one. */
export function frontierPanel(modelAt, frontier) {
  const { element: message, report } = messagePlace();
  const start = async () => {
    const job = await post("/jobs/tune", { model: modelAt, name: "what samples cost" });
    location.hash = `#/jobs/${job.id}`;
  };
  const what = frontier?.features === "pca" ? `${whole(frontier.num_features)} principal components` : "all values";
  return h(
    "section",
    { class: "panel", "aria-labelledby": "frontier" },
    h("h2", { id: "frontier" }, "What samples cost"),
    frontier
      ? [
          h(
            "p",
            { class: "hint" },
            `${whole(frontier.num_samples)} samples of each setting beside ${whole(frontier.num_held_out)} held-out items, by ${what}. Lower is nearer to the data; bars are standard errors.`,
          ),
          frontierChart(frontier),
          h(
            "details",
            {},
            h("summary", {}, "As numbers"),
            h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "As numbers" }, frontierTable(frontier)),
          ),
        ]
      : h(
          "p",
          {},
          "How near this checkpoint's samples come to held-out data, and at what cost, was not measured yet. " +
            "A tuning measures it and chooses the settings for draft, standard and best; on small models that takes minutes.",
        ),
    message,
    h("p", { class: "actions" }, actionButton(frontier ? "Measure again" : "Measure", {}, start, report)),
  );
}
