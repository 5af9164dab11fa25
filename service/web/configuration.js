// Every field of a training's configuration, in its groups; a field that is left alone has the preset's value.

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

/** Make the fields by path, such as `chain.num_steps`, and their element; the form asks for `others` elsewhere. */
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
    "Fields that belong to none of the other groups.",
    single.map(([name, one]) => add(name, one)),
  );
  return { fields, element: h("div", {}, groups, rest) };
}

/** Return the value that a preset has at a path. */
export function valueAt(config, path) {
  return path.split(".").reduce((below, name) => below?.[name], config);
}

/** Set the value at a path in a configuration that is laid over a preset. */
export function setAt(config, path, value) {
  const names = path.split(".");
  const last = names.pop();
  const below = names.reduce((found, name) => (found[name] ??= {}), config);
  below[last] = value;
}
