// The page of a document: shows its text with the cited passage, and opens the original.
// Markdown is rendered without HTML and sanitized; everything else from the service is text.

import { rendered } from "./markdown.js";
import { placeOf } from "./places.js";
import { request, storedKey, storeKey } from "./service.js";

const at = (id) => document.getElementById(id);
const ADDRESS = `/v1${location.pathname}`;
const COUNT = 200;
const KEEP_BLOB_MS = 60_000;
let name = "";
let isMarkdown = false;
let next = 0;
let last = null; // the passage shown last
let page = null; // page of the cited passage

function fail(error) {
  at("status").textContent = error.message;
  if (error.status !== 401) return;
  at("access").open = true;
  at("key").focus();
}

// Returns the range of characters in the address (#chunk=120-480), or null. Open WebUI appends #:~:text=…
function wanted() {
  const found = /^#chunk=(\d+)-(\d+)(#|$)/.exec(location.hash);
  return found && { start: Number(found[1]), end: Number(found[2]) };
}

async function start() {
  [next, last, page] = [0, null, null];
  at("text").replaceChildren();
  await loadUntilShown();
}

// Loads the text from its beginning up to the wanted passage, at least one part of it.
async function loadUntilShown() {
  try {
    do await loadPart();
    while (next !== null && wanted() && last.end < wanted().end);
    at("status").textContent = "";
    showWanted();
  } catch (error) {
    fail(error);
  }
}

async function loadPart() {
  at("more").hidden = true;
  const found = await (await request(`${ADDRESS}?first=${next}&count=${COUNT}`)).json();
  at("access").open = false;
  if (next === 0) showFacts(found);
  for (const passage of found.passages) showPassage(passage);
  next = found.next;
  at("more").hidden = next === null;
}

function showFacts(found) {
  name = found.path;
  isMarkdown = found.type === "text/markdown";
  document.title = found.title || found.path;
  at("title").textContent = found.title || found.path;
  const facts = [found.source, found.type, `modified ${new Date(found.modified_at).toLocaleDateString()}`];
  if (placeOf(name, found.pages)) facts.push(`up to ${placeOf(name, found.pages)}`);
  if (found.stale) facts.push("a newer version could not be read");
  at("place").textContent = facts.join(" · ");
  at("actions").hidden = false;
  const link = new URL(found.link, location);
  at("link").hidden = link.pathname === location.pathname || !/^https?:$/.test(link.protocol);
  if (!at("link").hidden) at("link").href = link.href;
}

function showPassage(passage) {
  const place = placeOf(name, passage.page);
  if (place && passage.page !== last?.page) add("p", "place", place);
  let text;
  if (isMarkdown) {
    text = add("div", "passage markdown", "");
    text.append(rendered(passage.text, () => null, 2));
  } else {
    const heading = passage.heading_path.join(" › ");
    if (heading && heading !== last?.heading_path.join(" › ")) add("h2", "", heading);
    if (passage.table_header) add("p", "quiet", passage.table_header);
    text = add("p", "passage", passage.text);
  }
  text.dataset.start = passage.start;
  text.dataset.end = passage.end;
  text.dataset.page = passage.page ?? "";
  last = passage;
}

function add(name, style, text) {
  const element = document.createElement(name);
  element.className = style;
  element.textContent = text;
  at("text").append(element);
  return element;
}

// Marks the wanted passage, which may consist of several adjacent ones, and scrolls to it.
function showWanted() {
  const range = wanted();
  const marked = [];
  for (const passage of at("text").querySelectorAll(".passage")) {
    const inside = range && Number(passage.dataset.start) < range.end && Number(passage.dataset.end) > range.start;
    passage.toggleAttribute("data-marked", Boolean(inside));
    passage.removeAttribute("tabindex");
    if (inside) marked.push(passage);
  }
  if (!marked.length) return;
  page = marked[0].dataset.page;
  marked[0].tabIndex = -1;
  marked[0].focus({ preventScroll: true });
  marked[0].scrollIntoView({ block: "center" });
}

// A blob has the rights of this page, so only a PDF is opened as one; everything else is saved.
async function openOriginal() {
  at("status").textContent = "Loading the original…";
  try {
    const response = await request(`${ADDRESS}/source`);
    const isPdf = response.headers.get("content-type") === "application/pdf";
    const saved = /filename\*=UTF-8''([^;]+)/.exec(response.headers.get("content-disposition"))?.[1] ?? "document";
    const type = isPdf ? "application/pdf" : "application/octet-stream";
    const url = URL.createObjectURL(new Blob([await response.blob()], { type }));
    setTimeout(() => URL.revokeObjectURL(url), KEEP_BLOB_MS);
    const opened = isPdf && window.open(`${url}${page ? `#page=${page}` : ""}`, "_blank");
    if (!opened) save(url, decodeURIComponent(saved));
    const changed = response.headers.has("x-source-changed");
    at("status").textContent = changed ? "The original was changed since this text was read from it." : "";
  } catch (error) {
    fail(error);
  }
}

function save(url, name) {
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
}

at("open").addEventListener("click", openOriginal);
at("more").addEventListener("click", loadUntilShown);
window.addEventListener("hashchange", () => {
  if (next !== null && wanted() && last && last.end < wanted().end) loadUntilShown();
  else showWanted();
});
at("key").value = storedKey();
at("key").addEventListener("change", () => {
  storeKey(at("key").value);
  start();
});
start();
