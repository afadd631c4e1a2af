// Renders what a model writes: Markdown without HTML and images, sanitized, with its citations as links.

import MarkdownIt from "./vendor/markdown-it.esm.min.mjs";
import DOMPurify from "./vendor/purify.es.mjs";

const markdown = new MarkdownIt({ html: false, linkify: false, breaks: true }).disable("image");
// The policy of the page forbids inline styles, with which columns of tables are aligned.
markdown.core.ruler.push("classes", ({ tokens }) => {
  for (const token of tokens) {
    const aligned = /^text-align:(\w+)$/.exec(token.attrGet("style"));
    if (aligned) token.attrs = [["class", aligned[1]]];
  }
});
const ALLOWED = {
  ALLOWED_TAGS: [
    "a", "blockquote", "br", "code", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "s",
    "strong", "table", "tbody", "td", "th", "thead", "tr", "ul",
  ],
  ALLOWED_ATTR: ["class", "href", "start"],
  ALLOWED_URI_REGEXP: /^https?:/i,
  RETURN_DOM_FRAGMENT: true,
};

// Returns the text as a fragment. `cite` makes the link of a citation such as [2], or returns null for other numbers.
// The page has headings above the text, so those of the text begin with the level `highest`.
export function rendered(text, cite, highest = 3) {
  const fragment = DOMPurify.sanitize(markdown.render(text), ALLOWED);
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  for (const heading of fragment.querySelectorAll("h1, h2, h3, h4, h5, h6")) {
    const level = Math.max(highest, Math.min(Number(heading.tagName[1]) + highest - 2, 6));
    const lower = document.createElement(`h${level}`);
    lower.append(...heading.childNodes);
    heading.replaceWith(lower);
  }
  for (const table of fragment.querySelectorAll("table")) {
    const frame = document.createElement("div");
    frame.className = "table";
    frame.tabIndex = 0; // scrolls by keyboard
    frame.setAttribute("role", "region");
    frame.setAttribute("aria-label", "Table");
    table.replaceWith(frame);
    frame.append(table);
  }
  linkCitations(fragment, cite);
  return fragment;
}

function linkCitations(fragment, cite) {
  const walker = document.createTreeWalker(fragment, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (/\[\d+\]/.test(node.data) && !node.parentElement?.closest("a, code")) found.push(node);
  }
  for (const node of found) {
    node.replaceWith(
      ...node.data.split(/(\[\d+\])/).map((part) => {
        const number = Number(/^\[(\d+)\]$/.exec(part)?.[1]);
        return (number && cite(number)) || document.createTextNode(part);
      }),
    );
  }
}
