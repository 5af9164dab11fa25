// Fields of a form, made of the schema of a request, so that the form asks for exactly what the service takes.

import { freshId, h, say } from "./dom.js";

const NONE = "none";

/** Return a schema with its reference, if it has one, resolved; whatever stands beside the reference counts too. */
export function resolved(schema, schemas) {
  const { $ref: reference, ...beside } = schema;
  return reference ? { ...schemas[reference.split("/").at(-1)], ...beside } : schema;
}

/** Return the schemas of all that a field may be, apart from null. */
function kinds(schema) {
  return (schema.anyOf ?? [schema]).filter((one) => one.type !== "null");
}

/** Return [text, value] of every choice, or null for a field whose value is typed. */
function choices(schema) {
  const [kind] = kinds(schema);
  if (kind.type === "boolean")
    return [
      ["yes", true],
      ["no", false],
    ];
  return kind.enum?.map((one) => [one, one]) ?? null;
}

function told(value) {
  if (value === null) return NONE;
  if (value === undefined) return "";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (Array.isArray(value)) return value.join(", ");
  return typeof value === "number" && Number.isInteger(value) ? value.toLocaleString("en") : String(value);
}

/** Return the note below a field: its meaning and its range. */
function note(schema, mayBeNone) {
  const [kind] = kinds(schema);
  const { minimum: low, maximum: high } = kind.prefixItems?.[0] ?? (kind.type === "array" ? kind.items : kind);
  const range = high !== undefined ? `${told(low)} to ${told(high)}` : low !== undefined ? `at least ${told(low)}` : "";
  const nothing = mayBeNone ? `“${NONE}” for no value` : "";
  const limits = [range, nothing].filter(Boolean).join("; ");
  const meaning = (schema.description ?? "").replace(/ Without a preset \S+\.$/, "").replace(/\.$/, "");
  return [meaning, limits].filter(Boolean).join(" · ").replaceAll("`", "");
}

function number(text, kind) {
  const value = Number(text.replace(/[\s,]/g, ""));
  return text && (kind.type === "integer" ? Number.isSafeInteger(value) : Number.isFinite(value)) ? value : undefined;
}

/** Read a typed text as the value of a field; undefined if it is none. */
function typed(text, schema, mayBeNone) {
  const [kind, ...others] = kinds(schema);
  if (text === NONE && mayBeNone) return null;
  if (others.some((one) => one.const === text)) return text;
  if (kind.type === "string") return text;
  if (kind.type !== "array") return number(text, kind);
  const items = text.split(/[\s,×]+/).map((one) => number(one, kind.prefixItems?.[0] ?? kind.items));
  return items.includes(undefined) ? undefined : items;
}

function expected(schema) {
  const [kind, ...others] = kinds(schema);
  const what = { integer: "a whole number", array: "whole numbers" }[kind.type] ?? "a number";
  return [what, ...others.map((one) => one.const)].join(" or ");
}

/** Return the name of a field as people read it. */
export function labelOf(name) {
  const text = name.replaceAll("_", " ");
  return text[0].toUpperCase() + text.slice(1);
}

/** A field with its label, control, note, and a place for what is wrong with it. */
export function field(path, label, meaning, control) {
  const id = freshId("field");
  const error = h("p", { class: "field-error", id: `${id}-error`, hidden: true });
  control.id = id;
  control.setAttribute("name", path);
  control.setAttribute("aria-describedby", `${id}-error ${id}-note`);
  return {
    control,
    element: h(
      "div",
      { class: "field" },
      h("label", { for: id }, label),
      control,
      error,
      h("p", { class: "hint", id: `${id}-note` }, meaning),
    ),
    complain(text) {
      say(error, text ?? "");
      error.hidden = !text;
      if (text) control.setAttribute("aria-invalid", "true");
      else control.removeAttribute("aria-invalid");
    },
  };
}

/**
 * A field of a request. `read()` returns {value}, {wrong: why}, or {} while it is left alone, and `usual(value)` shows
 * the value that it has then. With `mayBeNone` a person can say that it has no value although the preset has one.
 */
export function schemaField(path, label, schema, mayBeNone = false) {
  const options = choices(schema);
  const usual = h("option", { value: "" });
  const fixed = options && schema.default; // a choice that has a default needs no empty option
  const control = options
    ? h(
        "select",
        {},
        fixed ? null : usual,
        options.map(([text, value]) => h("option", { value: JSON.stringify(value) }, text)),
      )
    : h("input", { autocomplete: "off", spellcheck: "false", maxlength: kinds(schema)[0].maxLength });
  if (fixed) control.value = JSON.stringify(schema.default);
  if (kinds(schema)[0].type === "integer" && kinds(schema).length === 1) control.setAttribute("inputmode", "numeric");
  return {
    ...field(path, label, note(schema, mayBeNone), control),
    usual(value) {
      if (options) say(usual, value === undefined ? "as the preset" : `as the preset: ${told(value)}`);
      else control.placeholder = told(value);
    },
    read() {
      const text = control.value.trim();
      if (!text) return {};
      if (options) return { value: JSON.parse(text) };
      const value = typed(text, schema, mayBeNone);
      return value === undefined
        ? { wrong: `“${text}” is not ${expected(schema)}; expected digits, or an empty field for the usual value.` }
        : { value };
    },
  };
}

/** Return the fields of an object's schema by name, with references resolved. */
export function properties(schema, schemas) {
  return Object.fromEntries(Object.entries(schema.properties).map(([name, one]) => [name, resolved(one, schemas)]));
}

/** Say whether null is a value of the field, and not another way to leave it alone. */
export function nullable(schema) {
  return Boolean(schema.anyOf?.some((one) => one.type === "null"));
}
