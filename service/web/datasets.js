// Datasets: the list of all that can be trained on, and the form that uploads one.

import { get, upload } from "./api.js";
import { freshId, h, messagePlace, problem, say } from "./dom.js";
import { EVENT_KINDS } from "./events.js";
import { ago, bytes, extension } from "./format.js";

const KINDS = ["zip", "npy", "npz", "csv"];
const SHOWN_CLASSES = 5;

/** Return the name under which a dataset is shown. */
export function title(dataset) {
  return dataset.name ?? dataset.file_name ?? dataset.id;
}

/** Return the names of uploaded datasets by id, or none when the list cannot be fetched. */
export async function datasetNames(signal) {
  try {
    const { datasets } = await get("/datasets", signal);
    return new Map(datasets.map((one) => [one.id, title(one)]));
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return new Map();
  }
}

/** Say in words what a dataset holds. */
export function contents(dataset) {
  if (dataset.count === null) return "read when a training starts";
  return [EVENT_KINDS[dataset.kind].contents(dataset), classes(dataset)].filter(Boolean).join(", ");
}

/** Say which classes a dataset has, if it has some. */
function classes({ labels }) {
  if (!labels?.length) return null;
  const named = labels.slice(0, SHOWN_CLASSES).map((one) => one.name);
  return `${labels.length} classes: ${named.join(", ")}${labels.length > SHOWN_CLASSES ? ", …" : ""}`;
}

/** A form that uploads a file; `onUploaded` gets the dataset. */
export function uploadForm(onUploaded, signal) {
  const { element: message, report } = messagePlace();
  const [fileId, nameId, labelsId] = [freshId("upload"), freshId("upload-name"), freshId("upload-labels")];
  const input = h("input", {
    id: fileId,
    type: "file",
    accept: KINDS.map((kind) => `.${kind}`).join(","),
    class: "visually-hidden",
  });
  const name = h("input", { id: nameId, maxlength: 100, autocomplete: "off", placeholder: "the file's name" });
  const labels = h("input", { id: labelsId, maxlength: 100, autocomplete: "off" });
  const bar = h("progress", { max: 1, value: 0, hidden: true, "aria-label": "Upload" });
  const done = h("p", { class: "done", role: "status" });
  const zone = h(
    "label",
    { for: fileId, class: "drop" },
    h("strong", {}, "Drop a file here"),
    h("span", {}, "or choose one: a .zip of pictures of one size, a .npy or .npz array, a .csv of numbers; pictures in a folder for each class are labelled by it"),
  );

  const send = async (file) => {
    report(null);
    say(done, "");
    if (!KINDS.includes(extension(file.name)))
      return report(new Error(`${file.name} cannot be a dataset; expected a file that ends in .${KINDS.join(", .")}.`));
    bar.hidden = false;
    input.disabled = true;
    try {
      const fields = { name: name.value.trim(), labelColumn: labels.value.trim() };
      const dataset = await upload(file, fields, (share) => (bar.value = share), signal);
      say(done, [`${title(dataset)}: ${contents(dataset)}.`, ...dataset.notes.map((note) => `${note}.`)].join(" "));
      name.value = labels.value = "";
      onUploaded(dataset);
    } catch (error) {
      if (error.name !== "AbortError") report(error);
    } finally {
      bar.hidden = true;
      input.disabled = false;
      input.value = "";
    }
  };

  input.addEventListener("change", () => input.files[0] && send(input.files[0]));
  zone.addEventListener("dragover", (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    if (event.dataTransfer.files[0]) send(event.dataTransfer.files[0]);
  });
  return h(
    "div",
    { class: "upload" },
    h("div", { class: "field" }, h("label", { for: nameId }, "Name for the upload ", h("small", {}, "optional")), name),
    h(
      "div",
      { class: "field" },
      h("label", { for: labelsId }, "Column of labels ", h("small", {}, "optional: of a .csv, or the array of a .npz")),
      labels,
    ),
    input,
    zone,
    bar,
    done,
    message,
  );
}

const SOURCES = { uploaded: "Uploaded", "built-in": "Built in", folder: "In the server's folder" };

function card(dataset) {
  return h(
    "li",
    { class: "card" },
    h("h3", {}, title(dataset)),
    h(
      "p",
      { class: "about" },
      [
        contents(dataset),
        dataset.size_bytes ? bytes(dataset.size_bytes) : null,
        dataset.created_at ? ago(dataset.created_at) : null,
      ]
        .filter(Boolean)
        .join(" · "),
    ),
    h(
      "p",
      { class: "actions" },
      h(
        "a",
        { class: "button", href: `#/train?dataset=${encodeURIComponent(dataset.id)}` },
        "Train on it",
        h("span", { class: "visually-hidden" }, `: ${title(dataset)}`),
      ),
    ),
  );
}

export async function view(root, { signal }) {
  const place = h("div", {});
  const load = async () => {
    const { datasets } = await get("/datasets", signal);
    place.replaceChildren(
      ...Object.entries(SOURCES).flatMap(([source, heading]) => {
        const these = datasets.filter((one) => one.source === source);
        if (source === "uploaded" && !these.length)
          return [h("h2", { class: "heading" }, heading), h("p", { class: "hint" }, "Nothing has been uploaded yet.")];
        return these.length ? [h("h2", { class: "heading" }, heading), h("ul", { class: "cards two" }, these.map(card))] : [];
      }),
    );
  };
  await load();
  const form = uploadForm(
    () => load().catch((error) => error.name !== "AbortError" && place.prepend(problem(error))),
    signal,
  );
  root.replaceChildren(
    h("div", { class: "title" }, h("h1", { tabindex: "-1" }, "Datasets")),
    h("section", { class: "panel", "aria-label": "Upload a dataset" }, form),
    place,
  );
}
