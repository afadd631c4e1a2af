// What the page asks the service: the access key, requests, and the events of an answer.

const KEY = "rag-key";

export class Problem extends Error {
  constructor(message, { status = 0, retriable = false } = {}) {
    super(message);
    this.status = status;
    this.retriable = retriable;
  }
}

export function storedKey() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function storeKey(key) {
  sessionStorage.setItem(KEY, key.trim());
}

// Returns the response of a route; throws a Problem in words for readers.
export async function request(path, { body, signal } = {}) {
  const key = storedKey();
  const headers = { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST", headers, signal,
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem("The service cannot be reached.", { retriable: true });
  }
  if (!response.ok) throw await problemOf(response, key);
  return response;
}

async function problemOf(response, key) {
  const { status } = response;
  if (status === 401) {
    const message = key ? "This key is not valid. Check it or request a new one." : "Enter your access key.";
    return new Problem(message, { status });
  }
  let message = `The service responded with status ${status}.`;
  try {
    const { error } = await response.json();
    message = `${error.type}: ${error.message}`;
  } catch {
    // The status says enough.
  }
  return new Problem(message, { status, retriable: status === 429 || status >= 500 });
}

// Yields the name and data of each event of an answer; throws a Problem if the stream ends too early.
export async function* events(body, signal) {
  const response = await request("/v1/ask", { body: { ...body, stream: true }, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (signal.aborted) throw error;
      return { done: true };
    });
    if (done) throw new Problem("The connection was lost before the answer was complete.", { retriable: true });
    rest += value;
    let end;
    while ((end = rest.indexOf("\n\n")) >= 0) {
      const lines = rest.slice(0, end).split("\n");
      rest = rest.slice(end + 2);
      const name = lines.find((line) => line.startsWith("event: "))?.slice(7);
      const text = lines.filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (!name || !text) continue; // a comment that keeps the connection open
      const data = JSON.parse(text);
      if (name === "error") throw new Problem(`${data.error}: ${data.message}`, { retriable: true });
      yield [name, data];
      if (name === "done") return;
    }
  }
}
