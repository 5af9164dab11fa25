// Every field of a training's configuration, grouped as the configuration is; what is left alone is the preset's.

import { h } from "./dom.js";
import { nullable, properties, schemaField } from "./fields.js";

function group(name, meaning, fields) {
  return h(
    "details",
    { class: "group" },
    h("summary", {}, name),
    meaning ? h("p", { class: "hint" }, meaning.replaceAll("`", "")) : null,
    h(
      "div",
      { class: "columns even" },
      fields.map((one) => one.element),
    ),
  );
}

/** Fields by path, as `chain.num_steps`, and the element that shows them; `others` are asked for elsewhere. */
export function configurationFields(schemas, others) {
  const fields = {};
  const whole = properties(schemas.PartialTrainConfig, schemas);
  const add = (path, schema) => {
    fields[path] = schemaField(path, path, schema, nullable(schema));
    return fields[path];
  };
  const isGroup = ([, schema]) => Boolean(schema.properties);
  const single = Object.entries(whole).filter((one) => !isGroup(one) && !others.includes(one[0]));
  const groups = Object.entries(whole)
    .filter(isGroup)
    .map(([name, schema]) => {
      const below = Object.entries(properties(schema, schemas));
      const made = below.map(([inner, one]) => add(`${name}.${inner}`, one));
      return group(name, schema.description, made);
    });
  const rest = group(
    "training",
    "What belongs to no part of its own.",
    single.map(([name, one]) => add(name, one)),
  );
  return { fields, element: h("div", {}, groups, rest) };
}

/** What a preset says of a path. */
export function valueAt(config, path) {
  return path.split(".").reduce((below, name) => below?.[name], config);
}

/** A path's value set in a configuration that is laid over a preset. */
export function setAt(config, path, value) {
  const names = path.split(".");
  const last = names.pop();
  const below = names.reduce((found, name) => (found[name] ??= {}), config);
  below[last] = value;
}
