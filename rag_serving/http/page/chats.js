// The chats of this browser, stored under the access key that they were held with.

const MOST_CHATS = 50;
const MOST_TURNS = 20; // sent as history; the service reads up to 50

export class Chats {
  constructor(key) {
    // Only keeps the chats of different keys apart; it hides nothing.
    let hash = 0;
    for (const letter of key) hash = (Math.imul(hash, 31) + letter.codePointAt(0)) | 0;
    this.name = `rag-chats-${(hash >>> 0).toString(36)}`;
    this.all = read(this.name);
  }

  // Stores a chat as the newest one.
  keep(chat) {
    this.all = [chat, ...this.all.filter((other) => other.id !== chat.id)].slice(0, MOST_CHATS);
    while (this.all.length > 0) {
      try {
        localStorage.setItem(this.name, JSON.stringify(this.all));
        return;
      } catch {
        this.all.pop(); // there is no room for the oldest
      }
    }
  }

  remove(id) {
    this.all = this.all.filter((chat) => chat.id !== id);
    localStorage.setItem(this.name, JSON.stringify(this.all));
  }

  removeAll() {
    this.all = [];
    localStorage.removeItem(this.name);
  }
}

export function newChat() {
  return { id: crypto.getRandomValues(new Uint32Array(2)).join("-"), turns: [] };
}

// Returns the turns of a chat as the service takes them.
export function historyOf(chat) {
  return chat.turns.slice(-MOST_TURNS).map(({ question, answer }) => ({ question, answer: answer.text }));
}

function read(name) {
  try {
    const chats = JSON.parse(localStorage.getItem(name) ?? "[]");
    return Array.isArray(chats) ? chats.filter((chat) => chat?.id && Array.isArray(chat.turns)) : [];
  } catch {
    return [];
  }
}
