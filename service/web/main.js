// The page's router: it shows one view at a time, by the part of the address after #.

import { get, Refused } from "./api.js";
import { h, problem, say } from "./dom.js";
import { askForKey } from "./key.js";

const VIEWS = [
  [/^\/?$/, () => import("./jobs.js"), "/jobs"],
  [/^\/jobs$/, () => import("./jobs.js"), "/jobs"],
  [/^\/jobs\/(\w+)$/, () => import("./job.js"), "/jobs"],
  [/^\/models$/, () => import("./models.js"), "/models"],
  [/^\/models\/(\w+)$/, () => import("./model.js"), "/models"],
  [/^\/datasets$/, () => import("./datasets.js"), "/datasets"],
  [/^\/train$/, () => import("./train.js"), "/train"],
];

const main = document.getElementById("main");
let leaving = new AbortController();
let isFirst = true;

async function show() {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  const [address, query] = location.hash.slice(1).split("?");
  const found = VIEWS.map(([pattern, load, place]) => [pattern.exec(address), load, place]).find(([match]) => match);
  markPlace(found?.[2]);
  if (!found)
    return fail(new Error(`There is no page ${address}; the navigation above leads to those that there are.`));
  const [match, load] = found;
  const root = h("div", { class: "view" }, h("p", { class: "loading" }, "Loading…"));
  main.replaceChildren(root);
  try {
    const { view } = await load();
    await view(root, { signal, id: match[1], query: new URLSearchParams(query) });
    if (signal.aborted) return;
    performance.mark("view"); // `make test-web` reads the time of the first view
    const heading = root.querySelector("h1");
    document.title = `${heading?.textContent ?? ""} · recovery-likelihood`;
    if (!isFirst) heading?.focus();
    isFirst = false;
  } catch (error) {
    if (signal.aborted || error.name === "AbortError") return;
    fail(error);
  }
}

function fail(error) {
  const again = h("button", { type: "button", onclick: show }, "Try again");
  const title = error instanceof Refused && error.status === 404 ? "Not found" : "This did not work";
  main.replaceChildren(
    h("div", { class: "view" }, h("h1", { tabindex: "-1" }, title), problem(error), h("p", {}, again)),
  );
  document.title = `${title} · recovery-likelihood`;
}

function markPlace(place) {
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === `#${place}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

async function watchReadiness() {
  const banner = document.getElementById("readiness");
  for (;;) {
    if (!document.hidden) {
      try {
        await get("/readyz");
        banner.hidden = true;
      } catch (error) {
        say(banner, error instanceof Refused ? `Not everything is ready. ${error.message}` : error.message);
        banner.hidden = false;
      }
    }
    await new Promise((resolve) => setTimeout(resolve, 15_000));
  }
}

document
  .getElementById("key-button")
  .addEventListener("click", () =>
    askForKey("Where the service has keys, every call needs one: `recovery keys create` makes them.").then(
      show,
      () => {},
    ),
  );
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the part of the address after # names the view
  main.focus();
});
window.addEventListener("hashchange", show);
show();
watchReadiness();
