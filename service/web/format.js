// Numbers, times and sizes as people read them.

const MINUS = "−";

/** Write a number with about three significant digits, without a computer's notation. */
export function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const places = size >= 10 ** (digits - 1) ? 0 : Math.min(6, digits - 1 - Math.floor(Math.log10(size)));
  const text =
    size >= 1e7 || size < 1e-4
      ? size
          .toExponential(1)
          .replace(/e([+-])(\d+)/, (_, sign, power) => ` × 10${superscript((sign === "-" ? MINUS : "") + power)}`)
      : size.toLocaleString("en", { minimumFractionDigits: places, maximumFractionDigits: places });
  return (value < 0 ? MINUS : "") + text;
}

function superscript(text) {
  const digits = "⁰¹²³⁴⁵⁶⁷⁸⁹";
  return [...text].map((one) => (one === MINUS ? "⁻" : digits[Number(one)])).join("");
}

/** Write a number with a fixed number of decimals. */
export function fixed(value, places) {
  if (value === null || value === undefined) return "–";
  return (
    (value < 0 ? MINUS : "") +
    Math.abs(value).toLocaleString("en", { minimumFractionDigits: places, maximumFractionDigits: places })
  );
}

/** Write a value and its error, which may not be known, with a fixed number of decimals. */
export function withError(value, error, places) {
  return `${fixed(value, places)} ${error === null ? "(error not known)" : `± ${fixed(error, places)}`}`;
}

/** Write a count with its thousands separated. */
export function whole(value) {
  return value === null || value === undefined ? "–" : value.toLocaleString("en");
}

/** Write seconds in words, such as "3 min 20 s". */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const total = Math.max(0, Math.round(seconds));
  if (total < 60) return `${total} s`;
  if (total < 3600) return `${Math.floor(total / 60)} min ${total % 60} s`;
  if (total < 86_400) return `${Math.floor(total / 3600)} h ${Math.floor((total % 3600) / 60)} min`;
  return `${Math.floor(total / 86_400)} d ${Math.floor((total % 86_400) / 3600)} h`;
}

/** Join the facts that are known into one line. */
export function facts(...parts) {
  return parts.filter(Boolean).join(" · ");
}

/** Say how long ago a time was. */
export function ago(time) {
  const seconds = (Date.now() - new Date(time).getTime()) / 1000;
  if (seconds < 45) return "just now";
  if (seconds < 3600) return `${Math.max(1, Math.round(seconds / 60))} min ago`;
  if (seconds < 86_400) return `${Math.round(seconds / 3600)} h ago`;
  return new Date(time).toLocaleDateString(undefined, { year: "numeric", month: "short", day: "numeric" });
}

export function bytes(count) {
  if (count === null || count === undefined) return "–";
  if (count < 1000) return `${count} B`;
  const [size, unit] = count < 1e6 ? [count / 1e3, "kB"] : count < 1e9 ? [count / 1e6, "MB"] : [count / 1e9, "GB"];
  return `${size.toFixed(size < 10 ? 1 : 0)} ${unit}`;
}

/** Describe a shape, (C, H, W) or (D), in words. */
export function shape(event) {
  if (!event) return "read when a training starts";
  if (event.length !== 3) return `${event.join("×")} ${event[0] === 1 ? "number" : "numbers"}`;
  const [channels, height, width] = event;
  return `${width}×${height} ${{ 1: "grey", 3: "colour", 4: "colour with alpha" }[channels] ?? `${channels} channels`}`;
}

/** Return the extension of a file's name, in lower case. */
export function extension(name) {
  return name.includes(".") ? name.split(".").pop().toLowerCase() : "";
}
