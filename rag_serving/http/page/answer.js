// Shows one turn of a chat: the answer while it is written, its sources, and where it came from, in plain words.

import { rendered } from "./markdown.js";
import { placeOf } from "./places.js";

export class TurnView {
  constructor(question) {
    this.element = document.getElementById("turn").content.firstElementChild.cloneNode(true);
    this.part = (name) => this.element.querySelector(`.${name}`);
    this.part("asked").textContent = question;
    this.text = "";
    this.began = performance.now();
    this.phase = "Searching";
    this.timer = setInterval(() => this.#showProgress(), 1000);
    this.#showProgress();
  }

  #showProgress() {
    const seconds = Math.floor((performance.now() - this.began) / 1000);
    this.part("progress").textContent = `${this.phase}… ${seconds > 0 ? `${seconds} s` : ""}`;
  }

  // The passages were found, and the answer is about to be written.
  searched(sources) {
    this.found = sources;
    this.phase = "Waiting for the language model";
    this.#showProgress();
  }

  append(text) {
    this.phase = "Answering";
    this.text += text;
    this.scheduled ??= requestAnimationFrame(() => {
      this.scheduled = undefined;
      if (this.timer !== undefined) this.part("text").replaceChildren(rendered(this.text, () => null));
    });
  }

  restart() {
    this.text = "";
    this.part("text").replaceChildren();
  }

  #end() {
    clearInterval(this.timer);
    this.timer = undefined;
    this.part("progress").textContent = "";
    this.part("text").setAttribute("aria-busy", "false");
  }

  fail(message, retry) {
    this.#end();
    this.part("problem").hidden = false;
    this.part("problem").textContent = message;
    this.part("retry").hidden = retry === undefined;
    this.part("retry").addEventListener("click", retry ?? (() => {}));
  }

  finish(answer) {
    this.#end();
    const cited = new Set(answer.citations.map((citation) => citation.number));
    const cite = (number) => (cited.has(number) ? this.#citation(number) : null);
    this.part("text").replaceChildren(rendered(answer.text, cite));
    this.part("origin").textContent = originOf(answer);
    this.part("notes").replaceChildren(...(answer.notes ?? []).map((note) => item(`${note[0].toUpperCase()}${note.slice(1)}.`)));
    this.#showSources(answer, cited);
    this.part("actions").hidden = false;
    this.part("feedback").hidden = !answer.entry;
  }

  #citation(number) {
    const link = document.createElement("a");
    link.href = "#";
    link.className = "citation";
    link.textContent = `[${number}]`;
    link.setAttribute("aria-label", `Source ${number}`);
    link.addEventListener("click", (event) => {
      event.preventDefault();
      this.#openSource(number);
    });
    return link;
  }

  #showSources(answer, cited) {
    const others = (this.found ?? []).filter((source) => !cited.has(source.number));
    const sources = this.part("sources");
    const count = answer.citations.length;
    sources.querySelector("summary").textContent = count === 1 ? "1 source" : `${count} sources`;
    sources.querySelector("ol").replaceChildren(...answer.citations.map(sourceItem));
    sources.hidden = count === 0;
    sources.open = count <= 5;
    const unused = this.part("unused");
    unused.hidden = others.length === 0;
    unused.querySelector("summary").textContent = `Found, but not cited: ${others.length}`;
    unused.querySelector("ol").replaceChildren(...others.map(sourceItem));
  }

  #openSource(number) {
    const sources = this.part("sources");
    const details = sources.querySelector(`li[data-number="${number}"] details`);
    if (!details) return;
    sources.open = true;
    details.open = true;
    details.querySelector("summary").focus();
    details.scrollIntoView({ block: "nearest" });
  }
}

function sourceItem(source) {
  const element = document.getElementById("source").content.firstElementChild.cloneNode(true);
  element.dataset.number = source.number;
  const headings = [...new Set([source.title, ...source.heading_path])].filter(Boolean);
  element.querySelector("summary").textContent = `[${source.number}] ${headings.join(" › ") || source.source}`;
  const place = element.querySelector(".place");
  place.textContent = [source.source, placeOf(source.source, source.page), source.stale ? "outdated" : ""]
    .filter(Boolean).join(" · ");
  if (source.link) place.append(" · ", openLink(source.link));
  element.querySelector("pre").textContent = source.text;
  return element;
}

function openLink(address) {
  const url = new URL(address, location.href);
  if (!["http:", "https:"].includes(url.protocol)) return "";
  const link = document.createElement("a");
  link.href = url.href;
  link.target = "_blank";
  // The tab of a page of this service gets the key; another one gets nothing.
  link.rel = url.origin === location.origin ? "opener" : "noopener noreferrer";
  link.textContent = "Open the document";
  return link;
}

function originOf(answer) {
  const { total } = answer.timings;
  const took = total < 1000 ? `${Math.max(1, Math.round(total))} ms` : `${(total / 1000).toFixed(1)} s`;
  const how = {
    exact: "The same question was answered before",
    semantic: `The same question was answered before, as “${answer.cached_question}”`,
    revalidated: "The same question was answered before, from passages that have not changed",
    miss: "",
    bypass: "",
  }[answer.cache];
  const kind = {
    generated: "Answered from the documents",
    extract: "Quoted from the documents",
    none: "No answer was found in the documents",
  }[answer.kind];
  return `${how || kind} · ${took}`;
}

// Returns the answer and its sources as plain text.
export function asPlainText(answer) {
  const sources = answer.citations.map((source) => {
    const title = [...new Set([source.title, ...source.heading_path])].filter(Boolean).join(" › ");
    const link = source.link ? new URL(source.link, location.href).href : source.source;
    return `[${source.number}] ${[title, placeOf(source.source, source.page), link].filter(Boolean).join(", ")}`;
  });
  return [answer.text, ...sources].join("\n");
}

function item(text) {
  const element = document.createElement("li");
  element.textContent = text;
  return element;
}
