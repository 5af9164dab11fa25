// Score data: log density with its error, bits per dimension, and the place among the training data's scores.
//
// If data are discrete, a picture is scored as the training data were, with uniform noise of one bin; the score is the
// mean over several draws. The density of the picture as it is, without noise, stands beside it.

import { post } from "./api.js";
import { actionButton, freshId, h, messagePlace, s } from "./dom.js";
import { eventKind, fromByte } from "./events.js";
import { fixed, number, shape, withError } from "./format.js";

const NUM_DRAWS = 24;
const MAX_PICTURES = 40;

/** A generator of numbers in [0, 1) that are the same every time (mulberry32). */
function uniform(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Read a file as (C, H, W) numbers in [−1, 1], resized if the model has another size. Raises Error in words. */
async function toEvent(file, [channels, height, width]) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    throw new Error(`${file.name} is no picture that this browser can read; drop PNG or JPEG files.`);
  }
  const resized = bitmap.width !== width || bitmap.height !== height;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  const planes = Array.from({ length: channels }, (_, channel) =>
    Array.from({ length: height }, (_, row) =>
      Array.from({ length: width }, (_, column) => {
        const at = 4 * (row * width + column);
        const value = channels === 1 ? luma(data, at) : data[at + channel];
        return fromByte(value);
      }),
    ),
  );
  const isColour = channels === 1 && data.some((value, at) => at % 4 !== 3 && value !== data[at - (at % 4)]);
  const changes = [resized ? `resized from ${bitmap.width}×${bitmap.height}` : null, isColour ? "made grey" : null]
    .filter(Boolean)
    .join(", ");
  return { x: planes, changes, url: URL.createObjectURL(file) };
}

function luma(data, at) {
  const [r, g, b] = [data[at], data[at + 1], data[at + 2]];
  return r === g && g === b ? r : 0.299 * r + 0.587 * g + 0.114 * b;
}

function noisy(x, width, random) {
  return x.map((plane) => plane.map((row) => row.map((value) => value + width * (random() - 0.5))));
}

/** Say what share of the training data scores lower; between two quantiles it is interpolated linearly. */
export function place(score, quantiles) {
  if (!quantiles.length) return null;
  const [first, last] = [quantiles[0], quantiles.at(-1)];
  if (score < first.log_density) return `fewer than ${fixed(100 * first.level, 0)} %`;
  if (score >= last.log_density) return `more than ${fixed(100 * last.level, 0)} %`;
  const index = quantiles.findIndex((one) => score < one.log_density);
  const [a, b] = [quantiles[index - 1], quantiles[index]];
  const share = a.level + ((score - a.log_density) / (b.log_density - a.log_density)) * (b.level - a.level);
  return `about ${fixed(100 * share, 0)} %`;
}

/** Draw a dot, or for a score beyond the line an arrow at its end. */
function mark(beyond, percent) {
  if (!beyond) return s("circle", { cx: `${percent}%`, cy: 28, r: 5, class: "mark" });
  return s(
    "svg",
    { x: `${percent}%`, y: 28, overflow: "visible" },
    s("path", { d: beyond < 0 ? "M0 0l11 -6v12z" : "M0 0l-11 -6v12z", class: "mark" }),
  );
}

/** Draw the training data's quantiles as a box on a line, and scores as marks on it. */
function strip(quantiles, scores) {
  if (quantiles.length < 2) return null;
  const at = (level) => quantiles.find((one) => one.level === level)?.log_density ?? quantiles[0].log_density;
  const span = at(0.99) - at(0.01);
  const [low, high] = [at(0.01) - 0.4 * span, at(0.99) + 0.4 * span];
  const x = (value) => 100 * ((value - low) / (high - low));
  const line = (a, b, name) =>
    s("rect", {
      x: `${x(a)}%`,
      width: `${x(b) - x(a)}%`,
      y: name === "tails" ? 27 : 16,
      height: name === "tails" ? 2 : 24,
      class: name,
    });
  const label = (value, text) => s("text", { x: `${x(value)}%`, y: 60, "text-anchor": "middle" }, text);
  return h(
    "figure",
    { class: "strip" },
    h(
      "figcaption",
      {},
      h("strong", {}, "Among the training data's scores"),
      h("span", { class: "note" }, "nats; box: the middle half, line: 1 to 99 %"),
    ),
    s(
      "svg",
      {
        height: 66,
        role: "img",
        "aria-label": `Training data score from ${number(at(0.01))} to ${number(at(0.99))} nats, half of them from ${number(at(0.25))} to ${number(at(0.75))}. Yours: ${scores.map((one) => number(one)).join(", ")}.`,
      },
      line(quantiles[0].log_density, quantiles.at(-1).log_density, "tails"),
      line(at(0.25), at(0.75), "middle"),
      s("line", { x1: `${x(at(0.5))}%`, x2: `${x(at(0.5))}%`, y1: 16, y2: 40, class: "median" }),
      scores.map((one) => mark(one < low ? -1 : one > high ? 1 : 0, x(Math.max(low, Math.min(high, one))))),
      label(at(0.01), number(at(0.01))),
      label(at(0.5), number(at(0.5))),
      label(at(0.99), number(at(0.99))),
    ),
  );
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

function errorOfMean(values) {
  const middle = mean(values);
  return Math.sqrt(
    values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / Math.max(1, values.length - 1) / values.length,
  );
}

/** Fetch the scores of pictures or points: [{name, changes, url, given, logDensity, error, bits}]. Raises Refused. */
async function score(model, items, calibration, signal) {
  const width = calibration.bin_width;
  const random = uniform(0);
  const draws = width ? NUM_DRAWS : 0;
  const x = items.flatMap((item) => [item.x, ...Array.from({ length: draws }, () => noisy(item.x, width, random))]);
  const answer = await post("/log-density", { model, x }, { signal });
  return items.map((item, index) => {
    const [given, ...noised] = answer.items.slice(index * (1 + draws), (index + 1) * (1 + draws));
    const values = noised.map((one) => one.log_density).filter((one) => one !== null);
    const complete = given.log_density !== null && values.length === draws;
    return {
      ...item,
      given: given.log_density,
      logDensity: !complete ? null : draws ? mean(values) : given.log_density,
      error: draws && complete && answer.std_error !== null ? Math.hypot(answer.std_error, errorOfMean(values)) : answer.std_error,
      bits: draws && complete ? mean(noised.map((one) => one.bits_per_dim)) : given.bits_per_dim,
      doubt: answer.converged ? "" : answer.explanation,
    };
  });
}

function results(scores, calibration) {
  const quantiles = calibration.train_quantiles;
  const discrete = calibration.bin_width !== null;
  const rows = scores.map((one) =>
    h(
      "tr",
      {},
      h(
        "th",
        { scope: "row" },
        one.url ? h("img", { src: one.url, alt: "", class: "pixels tiny" }) : null,
        h("span", {}, one.name, one.changes ? h("small", {}, one.changes) : null),
      ),
      h(
        "td",
        { class: "number" },
        one.logDensity === null ? "too unlikely for numbers" : withError(one.logDensity, one.error, 2),
      ),
      discrete ? h("td", { class: "number" }, fixed(one.bits, 3)) : null,
      discrete ? h("td", { class: "number" }, fixed(one.given, 2)) : null,
      h("td", {}, one.logDensity === null ? "none" : (place(one.logDensity, quantiles) ?? "not known")),
    ),
  );
  return [
    h(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": "Scores" },
      h(
        "table",
        { class: "scores" },
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("th", { scope: "col" }, discrete ? "Picture" : "Point"),
            h("th", { scope: "col" }, "log density, nats"),
            discrete ? h("th", { scope: "col" }, "bits/dim") : null,
            discrete ? h("th", { scope: "col" }, "as it is, nats") : null,
            h("th", { scope: "col" }, "training data below"),
          ),
        ),
        h("tbody", {}, rows),
      ),
    ),
    strip(
      quantiles,
      scores.map((one) => one.logDensity).filter((one) => one !== null),
    ),
    h(
      "p",
      { class: "hint" },
      discrete
        ? `The mean over ${NUM_DRAWS} draws of uniform noise of one grey step, as the training data were scored. `
        : "",
      "± is the error of log Z, the same shift for all",
      discrete ? ", with that of the mean. " : ". ",
      scores.find((one) => one.doubt)?.doubt ?? "",
    ),
  ];
}

export function dropZone(onFiles) {
  const id = freshId("files");
  const input = h("input", {
    id,
    type: "file",
    accept: "image/png,image/jpeg",
    multiple: true,
    class: "visually-hidden",
  });
  const zone = h(
    "label",
    { for: id, class: "drop" },
    h("strong", {}, "Drop pictures here"),
    h("span", {}, "or choose PNG or JPEG files"),
  );
  input.addEventListener("change", () => {
    onFiles([...input.files]);
    input.value = "";
  });
  zone.addEventListener("dragover", (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    onFiles([...event.dataTransfer.files]);
  });
  return h("div", {}, input, zone);
}

export function pointsForm(dimension, onPoints, report) {
  const id = freshId("points");
  const field = h(
    "textarea",
    { id, rows: 4, spellcheck: "false" },
    Array(2)
      .fill(Array(dimension).fill(0))
      .map((row, index) => row.map((_, at) => (index && !at ? 1 : 0)).join(", "))
      .join("\n"),
  );
  const read = () =>
    field.value
      .trim()
      .split("\n")
      .map((line, index) => {
        const numbers = line
          .trim()
          .split(/[\s,;]+/)
          .map(Number);
        if (numbers.length !== dimension || numbers.some((one) => !Number.isFinite(one)))
          throw new Error(
            `Line ${index + 1}, “${line}”, is not a point; expected ${dimension} numbers separated by commas.`,
          );
        return { name: `(${line.trim()})`, x: numbers };
      });
  return h(
    "div",
    { class: "field" },
    h("label", { for: id }, `Points, one a line: ${dimension} numbers separated by commas`),
    field,
    h(
      "p",
      { class: "actions" },
      actionButton("Score", { class: "primary" }, () => onPoints(read()), report),
    ),
  );
}

/** What takes dropped files: it reads them as events of `eventShape`, hands them to `show`, and reports what is wrong. */
export function takePictures(eventShape, call, show, report) {
  return async (files) => {
    report(null);
    try {
      if (files.length > MAX_PICTURES)
        throw new Error(
          `These are ${files.length} files; drop at most ${MAX_PICTURES} at once. For more there is ${call}.`,
        );
      const read = async (file) => ({ name: file.name, ...(await toEvent(file, eventShape)) });
      if (files.length) await show(await Promise.all(files.map(read)));
    } catch (error) {
      if (error.name !== "AbortError") report(error);
    }
  };
}

export function scoringPanel(model, calibration, signal) {
  const { element: message, report } = messagePlace();
  const place_ = h(
    "div",
    { "aria-live": "polite" },
    h(
      "p",
      { class: "hint" },
      "Scores appear here, in nats, with the error of log Z and where they lie among the training data's.",
    ),
  );
  const isImage = eventKind(calibration.event_shape).hasPixels;
  const show = async (items) => {
    place_.replaceChildren(h("p", { class: "loading" }, "Scoring…"));
    try {
      place_.replaceChildren(...results(await score(model, items, calibration, signal), calibration).filter(Boolean));
    } catch (error) {
      place_.replaceChildren();
      throw error;
    }
  };
  const take = takePictures(calibration.event_shape, "POST /log-density", show, report);
  return h(
    "section",
    { class: "panel", "aria-labelledby": "scoring" },
    h("h2", { id: "scoring" }, "Score data"),
    h(
      "p",
      {},
      isImage
        ? `How likely is a picture under this model? Pictures of another size are brought to ${shape(calibration.event_shape)}.`
        : "How likely is a point under this model?",
    ),
    h(
      "div",
      { class: "columns" },
      h("div", {}, isImage ? dropZone(take) : pointsForm(calibration.event_shape[0], show, report), message),
      place_,
    ),
  );
}
