// Line charts as SVG: axes with round numbers, a legend, and the values under the pointer or the arrow keys.

import { h, s, say } from "./dom.js";
import { fixed, number, whole } from "./format.js";

const MARGIN = { top: 26, right: 14, bottom: 34 };
const MAX_POINTS = 400;

/** Return about `count` round values that span [low, high]. */
export function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough * 0.999);
  const found = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index += 1)
    found.push(index * step);
  return found;
}

/** Return the labels of ticks, all with the number of decimals that their spacing needs. */
function labelled(values) {
  const step = values.length > 1 ? values[1] - values[0] : Math.abs(values[0]) || 1;
  const places = Math.max(0, Math.min(6, -Math.floor(Math.log10(step) + 1e-9)));
  return values.map((value) => fixed(Math.abs(value) < step * 1e-9 ? 0 : value, places));
}

/** Average neighbouring points, so that a long run is drawn as fast as a short one. */
function thinned(points) {
  if (points.length <= MAX_POINTS) return points;
  const size = Math.ceil(points.length / MAX_POINTS);
  const found = [];
  for (let start = 0; start < points.length; start += size) {
    const piece = points.slice(start, start + size).filter(([, y]) => y !== null);
    const mean = piece.reduce((sum, [, y]) => sum + y, 0) / piece.length;
    found.push([points[start][0], piece.length ? mean : null]);
  }
  return found;
}

function path(points, x, y) {
  let drawing = false;
  let text = "";
  for (const [px, py] of points) {
    if (points.length === 1 && py !== null) return `M${x(px) - 2} ${y(py)}h4`; // a line needs two points to be seen
    if (py === null) drawing = false;
    else {
      text += `${drawing ? "L" : "M"}${x(px).toFixed(1)} ${y(py).toFixed(1)}`;
      drawing = true;
    }
  }
  return text;
}

function extent(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  const room = high > low ? (high - low) * 0.06 : Math.abs(high) * 0.1 || 1;
  return [low - room, high + room];
}

/**
 * A line chart. `draw(series)` shows [{name, points: [[x, y], …], class, level}], in which x grows and y may be null; a
 * `level` from 0 to 1 takes its colour from the ramp of noise levels.
 */
export function lineChart({
  title,
  note,
  xLabel,
  yLabel,
  wide = false,
  height = 190,
  legend = "names",
  exact = false,
}) {
  const plot = s("svg", { role: "img", tabindex: "0", class: "plot" });
  const readout = h("p", { class: "readout" });
  const names = h("p", { class: "legend", "aria-hidden": "true" });
  const element = h(
    "figure",
    { class: wide ? "chart wide" : "chart" },
    h("figcaption", {}, h("strong", {}, title), note ? h("span", { class: "note" }, note) : null),
    names,
    plot,
    readout,
  );
  let series = [];
  let xs = [];
  let at = null;
  let scales = null;

  const tell = () => {
    if (!xs.length) return;
    const x = xs[at ?? xs.length - 1];
    const values = series
      .map((one) => [one.name, one.points.find(([px, y]) => px === x && y !== null)?.[1]])
      .filter(([, y]) => y !== undefined);
    const shown = values.length > 5 ? [...values.slice(0, 2), ["…"], ...values.slice(-2)] : values;
    const told = shown.map(([name, y]) =>
      y === undefined ? name : series.length > 1 ? `${name} ${number(y)}` : number(y),
    );
    say(readout, `${at === null ? "Latest: " : ""}${xLabel} ${whole(x)} · ${told.join(" · ")}`);
  };

  const mark = () => {
    plot.querySelector(".cursor")?.remove();
    if (at === null || !scales) return tell();
    const [x, y] = [scales.x(xs[at]), scales.y];
    const dots = series
      .map((one) => [one, one.points.find(([px]) => px === xs[at])])
      .filter(([, point]) => point && point[1] !== null);
    plot.append(
      s(
        "g",
        { class: "cursor" },
        s("line", { x1: x, x2: x, y1: MARGIN.top, y2: height - MARGIN.bottom }),
        dots.map(([one, point]) =>
          s("circle", { cx: x, cy: y(point[1]), r: 3.5, class: one.class ?? "", style: levelStyle(one) }),
        ),
      ),
    );
    tell();
  };

  const render = () => {
    const width = Math.max(260, element.clientWidth);
    plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
    plot.setAttribute("height", height);
    const drawn = series.map((one) => ({ ...one, points: thinned(one.points) }));
    xs = [...new Set(drawn.flatMap((one) => one.points.filter(([, y]) => y !== null).map(([x]) => x)))].sort(
      (a, b) => a - b,
    );
    const values = drawn.flatMap((one) => one.points.filter(([, y]) => y !== null).map(([, y]) => y));
    if (!values.length) return;
    series = drawn;
    const [low, high] = extent(values);
    const [left, right] = [xs[0], xs.at(-1) > xs[0] ? xs.at(-1) : xs[0] + 1];
    const yTicks = ticks(low, high, Math.max(2, Math.floor(height / 40)));
    const labels = labelled(yTicks);
    const gutter = 16 + 7 * Math.max(...labels.map((label) => label.length));
    const x = (value) => gutter + ((value - left) / (right - left)) * (width - gutter - MARGIN.right);
    const y = (value) => MARGIN.top + ((high - value) / (high - low)) * (height - MARGIN.top - MARGIN.bottom);
    scales = { x, y };
    const xTicks = exact
      ? xs.filter((_, index) => index % Math.ceil(xs.length / (width / 44)) === 0)
      : ticks(left, right, Math.max(2, Math.floor(width / 110))).filter(Number.isInteger);
    plot.replaceChildren(
      s(
        "g",
        { class: "grid" },
        yTicks.map((value) => s("line", { x1: gutter, x2: width - MARGIN.right, y1: y(value), y2: y(value) })),
      ),
      s(
        "g",
        { class: "labels" },
        yTicks.map((value, index) =>
          s("text", { x: gutter - 8, y: y(value) + 4, "text-anchor": "end" }, labels[index]),
        ),
        xTicks.map((value) =>
          s("text", { x: x(value), y: height - MARGIN.bottom + 17, "text-anchor": "middle" }, whole(value)),
        ),
        s("text", { x: width - MARGIN.right, y: height - 3, "text-anchor": "end", class: "axis" }, xLabel),
        s("text", { x: 0, y: 11, class: "axis" }, yLabel),
      ),
      s(
        "g",
        { class: "lines" },
        drawn.map((one) => s("path", { d: path(one.points, x, y), class: one.class ?? "", style: levelStyle(one) })),
      ),
    );
    const last = drawn.map(
      (one) => `${one.name} ${number(one.points.filter(([, value]) => value !== null).at(-1)?.[1])}`,
    );
    plot.setAttribute(
      "aria-label",
      `${title}: ${xLabel} ${whole(left)} to ${whole(xs.at(-1))}; last ${last.slice(0, 3).join(", ")}. Arrow keys read the values.`,
    );
    if (at !== null) at = Math.min(at, xs.length - 1);
    mark();
  };

  const drawLegend = () => {
    if (legend === "levels") {
      if (!names.firstChild) names.append(h("span", {}, "clean"), h("span", { class: "ramp" }), h("span", {}, "noisy"));
    } else if (series.length > 1 && names.childElementCount !== series.length) {
      names.replaceChildren(
        ...series.map((one) => h("span", {}, h("i", { class: `swatch ${one.class ?? ""}` }), one.name)),
      );
    }
  };

  plot.addEventListener("pointermove", (event) => {
    if (!scales) return;
    const position = event.clientX - plot.getBoundingClientRect().left;
    at = xs.reduce(
      (best, value, index) =>
        Math.abs(scales.x(value) - position) < Math.abs(scales.x(xs[best]) - position) ? index : best,
      0,
    );
    mark();
  });
  const leave = () => {
    at = null;
    readout.removeAttribute("aria-live");
    mark();
  };
  plot.addEventListener("pointerleave", leave);
  plot.addEventListener("blur", leave);
  plot.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: 10, PageDown: -10 }[event.key];
    const jump = { Home: 0, End: xs.length - 1 }[event.key];
    if (move === undefined && jump === undefined) return;
    event.preventDefault();
    readout.setAttribute("aria-live", "polite");
    at = Math.max(0, Math.min(xs.length - 1, jump ?? (at ?? xs.length - 1) + move));
    mark();
  });
  new ResizeObserver(() => series.length && render()).observe(element);

  return {
    element,
    draw(next) {
      series = next;
      drawLegend();
      render();
    },
  };
}

function levelStyle(one) {
  return one.level === undefined ? {} : { "--t": `${Math.round(one.level * 100)}%` };
}
