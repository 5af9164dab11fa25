// The HTTP calls: keys, problems, event streams, uploads.

import { askForKey, currentKey } from "./key.js";

/** An answer other than success; its message is the sentence of the problem+json. */
export class Refused extends Error {
  constructor(status, body) {
    super(body.detail ?? `the service answered with status ${status}`);
    this.name = "Refused";
    this.status = status;
    this.kind = String(body.type ?? "")
      .split(":")
      .pop();
    this.fields = body.errors ?? [];
  }
}

const AWAY = "The service does not answer. Is `recovery up` still running? Nothing is lost; try again.";

function headersFor(headers) {
  const key = currentKey();
  return key ? { ...headers, authorization: `Bearer ${key}` } : headers;
}

async function refusal(status, text) {
  try {
    return new Refused(status, JSON.parse(text));
  } catch {
    return new Refused(status, {});
  }
}

/** Make a call and return its Response. `json` or `form` makes it a POST. Raises Refused, or an Error in words. */
export async function send(path, { method, json, form, accept = "application/json", headers = {}, signal } = {}) {
  const body = json === undefined ? form : JSON.stringify(json);
  const sent = { accept, ...(json === undefined ? {} : { "content-type": "application/json" }), ...headers };
  for (;;) {
    let answer;
    try {
      answer = await fetch(path, {
        method: method ?? (body === undefined ? "GET" : "POST"),
        body,
        headers: headersFor(sent),
        signal,
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error(AWAY);
    }
    if (answer.ok) return answer;
    const error = await refusal(answer.status, await answer.text());
    if (answer.status !== 401) throw error;
    await askForKey(error.message);
  }
}

export async function get(path, signal) {
  return (await send(path, { signal })).json();
}

export async function post(path, json, options = {}) {
  return (await send(path, { method: "POST", json, ...options })).json();
}

/** Yield the server-sent events of a call as {event, id, data}. `EventSource` could send neither a key nor a body. */
export async function* stream(path, options = {}) {
  const answer = await send(path, { ...options, accept: "text/event-stream" });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest = (rest + value).replaceAll("\r\n", "\n");
      const blocks = rest.split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const event = parsed(block);
        if (event.data !== null) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parsed(block) {
  const event = { event: "message", id: null, data: null };
  const lines = [];
  for (const line of block.split("\n")) {
    const [, name, value] = /^([^:]*):? ?(.*)$/.exec(line);
    if (name === "data") lines.push(value);
    else if (name === "event" || name === "id") event[name] = value;
  }
  if (lines.length) event.data = JSON.parse(lines.join("\n"));
  return event;
}

/** Yield every event of a job from its first on, until the job has ended; a broken connection is opened again. */
export async function* follow(jobId, signal) {
  let after = "0";
  for (let failures = 0; ;) {
    try {
      for await (const event of stream(`/jobs/${jobId}/events`, { headers: { "last-event-id": after }, signal })) {
        if (event.event === "interrupted") break;
        after = event.id;
        failures = 0;
        yield event.data;
      }
      const job = await get(`/jobs/${jobId}`, signal);
      if (isOver(job)) return;
    } catch (error) {
      if (error.name === "AbortError" || (error instanceof Refused && error.status < 500)) throw error;
      failures += 1;
    }
    await pause(Math.min(10_000, 500 * 2 ** failures), signal);
  }
}

export function isOver(job) {
  return ["succeeded", "failed", "cancelled"].includes(job.status);
}

/** Wait for a time; when the person leaves the view, end early with an AbortError. */
export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener(
      "abort",
      () => {
        clearTimeout(timer);
        reject(new DOMException("left", "AbortError"));
      },
      { once: true },
    );
  });
}

/** Make an <img> of a picture that may need the key. Raises Refused. */
export async function picture(path, attributes, signal) {
  const url = URL.createObjectURL(await (await send(path, { accept: "image/png", signal })).blob());
  const image = document.createElement("img");
  for (const [name, value] of Object.entries(attributes)) image.setAttribute(name, value);
  image.src = url;
  await image.decode().finally(() => URL.revokeObjectURL(url));
  return image;
}

/** Save bytes as a file on the person's computer. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Upload a dataset; `onProgress` gets a share from 0 to 1, which fetch() could not tell. */
export async function upload(file, { name, labelColumn }, onProgress, signal) {
  const form = new FormData();
  form.append("file", file);
  if (name) form.append("name", name);
  if (labelColumn) form.append("label_column", labelColumn);
  for (;;) {
    const { status, text } = await posted("/datasets", form, onProgress, signal);
    if (status === 200 || status === 201) return JSON.parse(text);
    const error = await refusal(status, text);
    if (status !== 401) throw error;
    await askForKey(error.message);
  }
}

function posted(path, form, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    for (const [name, value] of Object.entries(headersFor({ accept: "application/json" })))
      request.setRequestHeader(name, value);
    request.upload.addEventListener(
      "progress",
      (event) => event.lengthComputable && onProgress(event.loaded / event.total),
    );
    request.addEventListener("load", () => resolve({ status: request.status, text: request.responseText }));
    request.addEventListener("error", () => reject(new Error(AWAY)));
    signal?.addEventListener("abort", () => request.abort());
    request.addEventListener("abort", () => reject(new DOMException("left", "AbortError")));
    request.send(form);
  });
}

/** Make an idempotency key for a request that must not be done twice. */
export function idempotencyKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
