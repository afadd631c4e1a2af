// The web page: streams an answer by server-sent events and shows its sources and its cache state.
// Everything from the service is rendered as text, never as markup.

const at = (id) => document.getElementById(id);
const KEY = "rag-key";
let running = null;
let last = null;

at("key").value = sessionStorage.getItem(KEY) ?? "";
at("key").addEventListener("change", () => {
  sessionStorage.setItem(KEY, at("key").value.trim());
  loadShards();
});

function headers() {
  const key = at("key").value.trim();
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

// Returns the message of an error response; opens the key field if the key is missing or invalid.
async function problemOf(response) {
  if (response.status === 401) {
    at("access").open = true;
    return at("key").value.trim() ? "This key is not valid. Check it or request a new one." : "Enter your access key.";
  }
  try {
    const { error } = await response.json();
    return `${error.type}: ${error.message}`;
  } catch {
    return `The service responded with status ${response.status}.`;
  }
}

async function loadShards() {
  try {
    const response = await fetch("/v1/shards", { headers: headers() });
    if (!response.ok) {
      at("status").textContent = await problemOf(response);
      return;
    }
    const shards = await response.json();
    at("status").textContent = "";
    if (at("key").value.trim()) {
      if (document.activeElement === at("key")) at("question").focus();
      at("access").open = false;
    }
    fill(at("region"), shards.map((shard) => shard.region));
    fill(at("department"), shards.map((shard) => shard.department));
  } catch {
    at("status").textContent = "The service cannot be reached.";
  }
}

function fill(select, names) {
  const chosen = select.value;
  const options = [...new Set(names)].sort().map((name) => new Option(name, name));
  select.replaceChildren(new Option("all", ""), ...options);
  select.value = [...select.options].some((option) => option.value === chosen) ? chosen : "";
}

// Parses server-sent events. EventSource cannot be used, because it sends GET requests only.
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    let end;
    while ((end = rest.indexOf("\n\n")) >= 0) {
      const lines = rest.slice(0, end).split("\n");
      rest = rest.slice(end + 2);
      const name = lines.find((line) => line.startsWith("event: "))?.slice(7);
      const data = lines.filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (name && data) yield [name, JSON.parse(data)];
    }
  }
}

async function ask(question) {
  running?.abort();
  const mine = (running = new AbortController());
  const body = { question, stream: true };
  if (at("region").value) body.regions = [at("region").value];
  if (at("department").value) body.departments = [at("department").value];
  begin(question);
  try {
    const response = await fetch("/v1/ask", {
      method: "POST", headers: headers(), body: JSON.stringify(body), signal: mine.signal,
    });
    if (!response.ok) throw new Error(await problemOf(response));
    for await (const [name, data] of eventsOf(response)) {
      if (mine.signal.aborted) return;
      if (name === "sources") {
        showSources(data.sources);
        at("status").textContent = "Answering…";
      } else if (name === "delta") at("text").append(data.text);
      else if (name === "restart") at("text").textContent = "";
      else if (name === "citations") showSources(data.citations);
      else if (name === "done") finish(data.answer);
      else if (name === "error") throw new Error(`${data.error}: ${data.message}`);
    }
  } catch (error) {
    // If another question was asked meanwhile, the page belongs to that one.
    if (running === mine) at("status").textContent = mine.signal.aborted ? "Stopped." : error.message;
  } finally {
    if (running === mine) end();
  }
}

function begin(question) {
  last = null;
  at("answer").hidden = false;
  at("sources").hidden = true;
  at("feedback").hidden = true;
  at("asked").textContent = question;
  at("text").textContent = "";
  at("text").setAttribute("aria-busy", "true");
  at("cache").textContent = "";
  at("status").textContent = "Searching…";
  at("stop").hidden = false;
}

function end() {
  running = null;
  at("text").setAttribute("aria-busy", "false");
  if (document.activeElement === at("stop")) at("question").focus();
  at("stop").hidden = true;
}

function finish(answer) {
  last = answer;
  showText(answer);
  const origin = {
    exact: "Answered from the cache", semantic: "Answered from the cache", revalidated: "Answered from the cache",
    miss: "Answered from the documents", bypass: "Answered without the cache",
  }[answer.cache];
  const parts = [`${origin} in ${Math.round(answer.timings.total)} ms`];
  if (answer.cache_reason) parts.push(answer.cache_reason);
  if (answer.cached_question) parts.push(`cached for “${answer.cached_question}”`);
  if (answer.notes?.length) parts.push(answer.notes.join("; "));
  at("cache").textContent = parts.join(" · ");
  at("status").textContent = "Done.";
  at("feedback").hidden = !answer.entry;
}

// Turns citation marks into links to their sources.
function showText(answer) {
  const numbers = new Set(answer.citations.map((citation) => citation.number));
  at("text").replaceChildren(
    ...answer.text.split(/(\[\d+\]|\*\*[^*]+\*\*)/).map((part) => {
      if (part.startsWith("**") && part.length > 4) {
        const strong = document.createElement("strong");
        strong.textContent = part.slice(2, -2);
        return strong;
      }
      const number = Number(/^\[(\d+)\]$/.exec(part)?.[1]);
      if (!numbers.has(number)) return document.createTextNode(part);
      const link = document.createElement("a");
      link.href = `#source-${number}`;
      link.textContent = part;
      link.setAttribute("aria-label", `Source ${number}`);
      link.addEventListener("click", (event) => {
        event.preventDefault();
        openSource(number);
      });
      return link;
    }),
  );
}

function showSources(sources) {
  at("sources").hidden = sources.length === 0;
  at("list").replaceChildren(
    ...sources.map((source) => {
      const item = document.createElement("li");
      item.id = `source-${source.number}`;
      const details = document.createElement("details");
      const summary = document.createElement("summary");
      summary.textContent = `[${source.number}] ${[...new Set([source.title, ...source.heading_path])].join(" › ")}`;
      const place = document.createElement("p");
      place.className = "place";
      const page = source.page === null ? "" : `page ${source.page}, `;
      place.textContent = `${source.source} — ${page}characters ${source.start}–${source.end} `;
      place.append(linkToDocument(source));
      const text = document.createElement("pre");
      text.textContent = source.text;
      details.append(summary, place, text);
      item.append(details);
      return item;
    }),
  );
}

function linkToDocument(source) {
  const link = document.createElement("a");
  const shard = source.shard.split("/").map(encodeURIComponent).join("/");
  link.href = `/documents/${shard}/${encodeURIComponent(source.doc_id)}#chunk=${source.start}-${source.end}`;
  link.target = "_blank";
  link.rel = "opener"; // the new tab inherits the key
  link.textContent = "Open the document";
  return link;
}

function openSource(number) {
  const details = document.querySelector(`#source-${number} details`);
  if (!details) return;
  details.open = true;
  details.querySelector("summary").focus();
  details.scrollIntoView({ block: "nearest" });
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = at("question").value.trim();
  if (question) ask(question);
});
at("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("form").requestSubmit();
  }
});
at("stop").addEventListener("click", () => running?.abort());
at("feedback").addEventListener("click", async (event) => {
  const correct = event.target.dataset?.correct;
  if (correct === undefined || last === null) return;
  const body = JSON.stringify({ answer: last, correct: correct === "true" });
  try {
    const response = await fetch("/v1/feedback", { method: "POST", headers: headers(), body });
    at("status").textContent = response.ok ? "Thank you for your feedback." : await problemOf(response);
    at("feedback").hidden = response.ok;
  } catch {
    at("status").textContent = "The service cannot be reached; try again.";
  }
});
loadShards();
