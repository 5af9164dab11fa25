// The OpenAPI document as a page: every call with its fields, its answers, and an example for the command line.

import { h, problem } from "./dom.js";

let document_ = null;

function resolved(schema) {
  let found = schema ?? {};
  while (found.$ref)
    found = found.$ref
      .slice(2)
      .split("/")
      .reduce((value, name) => value[name], document_);
  return found;
}

/** Return a text as nodes, with `code` as code elements. */
function prose(text) {
  return String(text ?? "")
    .split("`")
    .map((part, index) => (index % 2 ? h("code", {}, part) : part));
}

/** Return the type of a schema in words. */
function kind(schema) {
  const found = resolved(schema);
  if (found.enum)
    return found.enum
      .filter((one) => one !== null)
      .map((one) => JSON.stringify(one))
      .join(", ");
  if (found.const !== undefined) return JSON.stringify(found.const);
  if (found.anyOf)
    return found.anyOf
      .map(kind)
      .filter((one) => one !== "null")
      .join(" or ");
  if (found.type === "array") return `list of ${kind(found.items)}`;
  return [
    found.title && found.properties ? found.title : found.format === "binary" ? "file" : (found.type ?? "anything"),
    bounds(found),
  ]
    .filter(Boolean)
    .join(" ");
}

function bounds(schema) {
  const low = schema.minimum ?? schema.exclusiveMinimum;
  const high = schema.maximum ?? schema.exclusiveMaximum;
  if (low === undefined && high === undefined) return "";
  return high === undefined || high > Number.MAX_SAFE_INTEGER
    ? `from ${low} on`
    : `${low} to ${schema.exclusiveMaximum === undefined ? high : `below ${high}`}`;
}

function fieldTable(caption, rows) {
  if (!rows.length) return null;
  return [
    h("h4", {}, caption),
    h(
      "table",
      {},
      h(
        "tbody",
        {},
        rows.map(([name, type, text, required]) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, h("code", {}, name), required ? h("small", {}, " required") : null),
            h("td", {}, h("small", {}, type), h("br"), prose(text)),
          ),
        ),
      ),
    ),
  ];
}

function bodyRows(schema) {
  const found = resolved(schema);
  return Object.entries(found.properties ?? {}).map(([name, one]) => [
    name,
    kind(one),
    one.description ?? resolved(one).description,
    (found.required ?? []).includes(name),
  ]);
}

/** Return an example of a call as a command that can be pasted into a shell. */
function example(method, path, operation) {
  const filled = path.replace(/\{(\w+)\}/g, (_, name) => {
    const parameter = (operation.parameters ?? []).find((one) => one.name === name);
    return parameter?.schema?.examples?.[0] ?? parameter?.example ?? name.toUpperCase();
  });
  const parts = [`curl ${method === "GET" ? "" : `-X ${method} `}${location.origin}${filled}`];
  const content = operation.requestBody?.content ?? {};
  if (content["application/json"]) {
    const schema = resolved(content["application/json"].schema);
    const body =
      content["application/json"].example ?? (schema.examples ?? resolved((schema.anyOf ?? [])[0]).examples ?? [{}])[0];
    parts.push("-H 'content-type: application/json'", `-d '${JSON.stringify(body)}'`);
  } else if (content["multipart/form-data"]) {
    parts.push("-F file=@FILE");
  }
  if (operation.security?.length)
    parts.push('-H "authorization: Bearer $RECOVERY_API_KEY"  # where the service has keys');
  return parts.join(" \\\n  ");
}

const succeeds = ([status]) => status.startsWith("2");

function answerRows(responses) {
  return responses
    .filter(succeeds)
    .map(([status, one]) => [status, Object.keys(one.content ?? {}).join(", "), one.description]);
}

function refusals(responses) {
  const told = responses.filter((one) => !succeeds(one)).map(([status, one]) => `${status} ${one.description}`);
  return told.length ? h("p", { class: "hint" }, `Errors, as application/problem+json: ${told.join(", ")}.`) : null;
}

function call(method, path, operation) {
  const content = Object.values(operation.requestBody?.content ?? {});
  const scope = operation.security?.[0]?.key?.[0];
  return h(
    "section",
    { class: "call panel", id: operation.operationId, "aria-labelledby": `${operation.operationId}-title` },
    h("h3", { id: `${operation.operationId}-title` }, h("span", { class: "method" }, method), h("code", {}, path)),
    h("p", {}, h("strong", {}, operation.summary), ". ", prose(operation.description)),
    scope ? h("p", { class: "hint" }, "Needs a key with ", h("code", {}, scope), " where the service has keys.") : null,
    fieldTable(
      "Parameters",
      (operation.parameters ?? []).map((one) => [
        `${one.name} (${one.in})`,
        kind(one.schema),
        one.description ?? one.schema?.description,
        one.required,
      ]),
    ),
    content.length ? fieldTable("Body", bodyRows(content[0].schema)) : null,
    fieldTable("Answers", answerRows(Object.entries(operation.responses))),
    refusals(Object.entries(operation.responses)),
    h("h4", {}, "Example"),
    h(
      "pre",
      { tabindex: "0", role: "region", "aria-label": `Example of ${method} ${path}` },
      example(method, path, operation),
    ),
  );
}

async function show() {
  const place = document.getElementById("calls");
  try {
    document_ = await (await fetch("/openapi.json")).json();
  } catch {
    place.replaceChildren(problem(new Error("The service does not answer; reload this page when it does.")));
    return;
  }
  const groups = new Map();
  for (const [path, operations] of Object.entries(document_.paths)) {
    for (const [method, operation] of Object.entries(operations)) {
      const tag = operation.tags?.[0] ?? "others";
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push([method.toUpperCase(), path, operation]);
    }
  }
  place.replaceChildren(
    h(
      "div",
      {},
      document_.info.description.split("\n\n").map((text) => h("p", {}, prose(text))),
    ),
    h(
      "div",
      { class: "calls" },
      h(
        "aside",
        { "aria-label": "All calls" },
        [...groups].map(([tag, calls]) => [
          h("strong", {}, tag),
          h(
            "ul",
            {},
            calls.map(([, , operation]) =>
              h("li", {}, h("a", { href: `#${operation.operationId}` }, operation.summary)),
            ),
          ),
        ]),
      ),
      h(
        "div",
        {},
        [...groups].map(([tag, calls]) => [h("h2", { class: "heading" }, tag), calls.map((one) => call(...one))]),
      ),
    ),
  );
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

show();
