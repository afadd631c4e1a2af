// The page: a chat with the documents, past chats, and the scope of the search.

import { asPlainText, TurnView } from "./answer.js";
import { Chats, historyOf, newChat } from "./chats.js";
import { events, request, storedKey, storeKey } from "./service.js";

const at = (id) => document.getElementById(id);
const plural = (count, word) => `${count.toLocaleString()} ${word}${count === 1 ? "" : "s"}`;

let chats = new Chats(storedKey());
let chat = newChat();
let shards = [];
let running = null;

// --- questions and answers ---

async function ask(question, view = addTurn(question)) {
  running?.abort();
  const mine = (running = new AbortController());
  const asking = chat;
  at("stop").hidden = false;
  at("status").textContent = "Searching…";
  try {
    const body = { question, history: historyOf(chat), ...chosenScope() };
    for await (const [name, data] of events(body, mine.signal)) {
      if (mine.signal.aborted) return;
      if (name === "sources") view.searched(data.sources);
      else if (name === "delta") view.append(data.text);
      else if (name === "restart") view.restart();
      else if (name === "done") show(view, question, data.answer, asking);
    }
  } catch (error) {
    const stopped = mine.signal.aborted;
    view.fail(stopped ? "Stopped." : error.message, error.retriable || stopped ? () => again(question, view) : undefined);
    if (error.status === 401) openKeyField();
    if (running === mine) at("status").textContent = stopped ? "Stopped." : error.message;
  } finally {
    if (running === mine) {
      running = null;
      if (document.activeElement === at("stop")) at("question").focus();
      at("stop").hidden = true;
    }
  }
}

function again(question, failed) {
  const view = new TurnView(question);
  failed.element.replaceWith(view.element);
  at("question").focus();
  ask(question, view);
}

function addTurn(question) {
  const view = new TurnView(question);
  at("empty").hidden = true;
  at("turns").append(view.element);
  view.element.scrollIntoView({ block: "start" });
  return view;
}

function show(view, question, answer, asking) {
  finish(view, answer);
  at("status").textContent = "Answered.";
  asking.turns.push({ question, answer });
  asking.scope = chosenScope();
  chats.keep(asking);
  if (asking === chat) showAddress();
  listChats();
}

function finish(view, answer) {
  view.finish(answer);
  view.part("copy").addEventListener("click", () => copy(asPlainText(answer), "The answer was copied."));
  view.part("feedback").addEventListener("click", (event) => {
    const correct = event.target.dataset.correct;
    if (correct !== undefined) report(answer, correct === "true", view);
  });
}

async function report(answer, correct, view) {
  try {
    await request("/v1/feedback", { body: { answer, correct } });
    view.part("feedback").hidden = true;
    at("status").textContent = "Thank you for your feedback.";
  } catch (error) {
    at("status").textContent = `${error.message} Your feedback was not sent; try again.`;
  }
}

async function copy(text, done) {
  try {
    await navigator.clipboard.writeText(text);
    at("status").textContent = done;
  } catch {
    at("status").textContent = "The browser does not allow this page to copy; select the text instead.";
  }
}

// --- chats ---

function open(next) {
  running?.abort();
  chat = next;
  at("turns").replaceChildren();
  at("empty").hidden = chat.turns.length > 0;
  for (const { question, answer } of chat.turns) {
    const view = new TurnView(question);
    finish(view, answer);
    at("turns").append(view.element);
  }
  if (chat.scope) choose(chat.scope);
  at("status").textContent = "";
  showAddress();
  listChats();
  showMenu(false);
  at("question").focus();
}

function listChats() {
  at("chats").replaceChildren(
    ...chats.all.map((one) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.className = "plain";
      button.textContent = one.turns[0]?.question ?? "";
      if (one.id === chat.id) button.setAttribute("aria-current", "true");
      button.addEventListener("click", () => open(one));
      const remove = document.createElement("button");
      remove.type = "button";
      remove.className = "plain";
      remove.textContent = "×";
      remove.setAttribute("aria-label", `Delete “${button.textContent}”`);
      remove.addEventListener("click", () => {
        chats.remove(one.id);
        if (one.id === chat.id) open(newChat());
        else listChats();
        at("new").focus();
      });
      item.append(button, remove);
      return item;
    }),
  );
  at("forget").hidden = chats.all.length === 0;
}

function showMenu(shown) {
  document.body.classList.toggle("menu", shown);
  at("menu").setAttribute("aria-expanded", String(shown));
}

// The address of a chat asks its first question again, for anyone who opens it.
function showAddress() {
  const question = chat.turns[0]?.question;
  const query = new URLSearchParams();
  if (question) {
    query.set("q", question);
    for (const region of chat.scope?.regions ?? []) query.append("region", region);
    for (const department of chat.scope?.departments ?? []) query.append("department", department);
  }
  history.replaceState(null, "", question ? `?${query}` : "/");
  at("share").hidden = !question;
}

// --- scope ---

function fillScope() {
  fill(at("regions"), [...new Set(shards.map((shard) => shard.region))]);
  fillDepartments();
}

// Lists the departments that exist in the chosen regions.
function fillDepartments() {
  const regions = checked(at("regions"));
  const within = shards.filter((shard) => regions.length === 0 || regions.includes(shard.region));
  fill(at("departments"), [...new Set(within.map((shard) => shard.department))]);
  showChosen();
}

function fill(fieldset, names) {
  const before = checked(fieldset);
  fieldset.replaceChildren(
    fieldset.querySelector("legend"),
    ...names.sort((a, b) => a.localeCompare(b)).map((name) => {
      const label = document.createElement("label");
      const box = document.createElement("input");
      box.type = "checkbox";
      box.value = name;
      box.checked = before.includes(name);
      label.append(box, ` ${name}`);
      return label;
    }),
  );
}

function checked(fieldset) {
  return [...fieldset.querySelectorAll("input:checked")].map((box) => box.value);
}

function choose({ regions = [], departments = [] }) {
  for (const box of at("regions").querySelectorAll("input")) box.checked = regions.includes(box.value);
  fillDepartments();
  for (const box of at("departments").querySelectorAll("input")) box.checked = departments.includes(box.value);
  showChosen();
}

function chosenScope() {
  const regions = checked(at("regions"));
  const departments = checked(at("departments"));
  return { ...(regions.length ? { regions } : {}), ...(departments.length ? { departments } : {}) };
}

function showChosen() {
  const names = [...checked(at("regions")), ...checked(at("departments"))];
  at("chosen").textContent = names.length ? `Only ${names.join(", ")}` : "All regions and departments";
}

// --- start ---

async function loadShards() {
  try {
    shards = await (await request("/v1/shards")).json();
  } catch (error) {
    at("status").textContent = error.message;
    if (error.status === 401) openKeyField();
    return false;
  }
  at("status").textContent = "";
  if (storedKey()) {
    if (document.activeElement === at("key")) at("question").focus();
    at("access").open = false;
  }
  const documents = shards.reduce((sum, shard) => sum + shard.documents, 0);
  const newest = shards.map((shard) => shard.published_at).sort().at(-1);
  at("corpus").textContent = shards.length
    ? `${plural(documents, "document")} of ${plural(shards.length, "department")} in ` +
      `${plural(new Set(shards.map((shard) => shard.region)).size, "region")}, as of ` +
      `${new Date(newest).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" })}`
    : "Nothing is published yet.";
  fillScope();
  return true;
}

function openKeyField() {
  at("access").hidden = false;
  at("access").open = true;
  at("key").focus();
}

async function configure() {
  const config = await (await fetch("/page/config.json")).json();
  at("name").textContent = document.title = config.name;
  at("access").hidden = !config.needs_key;
  if (config.accent) document.documentElement.style.setProperty("--chosen-accent", config.accent);
  at("examples").replaceChildren(
    ...config.examples.map((question) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = question;
      button.addEventListener("click", () => ask(question));
      item.append(button);
      return item;
    }),
  );
}

async function start() {
  at("key").value = storedKey();
  await configure().catch(() => {});
  listChats();
  if (!(await loadShards())) return;
  const query = new URLSearchParams(location.search);
  if (!query.get("q") || chat.turns.length > 0) return;
  choose({ regions: query.getAll("region"), departments: query.getAll("department") });
  ask(query.get("q").slice(0, at("question").maxLength));
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = at("question").value.trim();
  if (!question) return;
  at("question").value = "";
  ask(question);
});
at("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("form").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  running?.abort();
  showMenu(false);
});
at("stop").addEventListener("click", () => running?.abort());
at("new").addEventListener("click", () => open(newChat()));
at("menu").addEventListener("click", () => showMenu(!document.body.classList.contains("menu")));
at("forget").addEventListener("click", () => {
  chats.removeAll();
  open(newChat());
});
at("share").addEventListener("click", () => copy(location.href, "The link was copied."));
at("regions").addEventListener("change", fillDepartments);
at("departments").addEventListener("change", showChosen);
at("key").addEventListener("change", () => {
  storeKey(at("key").value);
  chats = new Chats(storedKey());
  if (at("turns").childElementCount > 0) open(newChat());
  start();
});
start();
