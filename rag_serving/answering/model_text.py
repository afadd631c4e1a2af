"""What of a model's stream is its answer: without its thoughts, and without the word by which it refuses."""

import re
from collections.abc import Collection

NO_ANSWER = "NO_ANSWER"
"""Word with which the prompt asks a model to begin if the sources do not answer the question, in any language."""

_THOUGHTS = "think|thinking|thought|thoughts|reasoning|reflection"
_TAG = re.compile(rf"<(/?)(?:{_THOUGHTS})>", re.IGNORECASE)
_LONGEST_TAG = len("</reflection>")
_REFUSAL = re.compile(r"[\s*_\[(\"'“`#]*NO[_ -]?ANSWER(?![A-Za-z])[\s*_\])\"'”`.:,–—-]*")
_MAY_REFUSE = re.compile(
    r"[\s*_\[(\"'“`#]*(?:N|NO|NO[_ -]|NO[_ -]?A(?:N(?:S(?:W(?:E(?:R[\s*_\])\"'”`.:,–—-]*)?)?)?)?)?)?"
)


_LINK = re.compile(r"(!?)\[([^\]\n]*)\]\(\s*<?([^)\s>]*)>?[^)\n]*\)")
_MAY_LINK = re.compile(r"!?(?:\[(?:[^\]\n]{0,200}(?:\](?:\([^)\n]{0,1000})?)?)?)?$")
"""The end of a text that may be the beginning of a link or an image; matches the empty end as well."""


class ModelText:
    """Collects the pieces of a stream and returns what of each can be shown.

    Links and images are removed unless they point to one of `sources`; None keeps them all. A document could make the
    model show them, and an image is loaded without a click.
    """

    def __init__(self, sources: Collection[str] | None = None) -> None:
        self._sources = sources
        self.shown = ""
        self.refused = False
        self.was_voided = False
        """Whether what was shown turned out to be thoughts; the reader of the stream resets it."""
        self._held = ""
        self._is_thinking = False

    def feed(self, piece: str) -> str:
        """Add a piece, and return the text that can be shown now; a beginning of a tag is held back."""
        self._held += piece
        ready = ""
        while (tag := _TAG.search(self._held)) is not None:
            before, self._held = self._held[: tag.start()], self._held[tag.end() :]
            if self._is_thinking:
                self._is_thinking = not tag[1]
            elif tag[1]:  # some templates begin the thoughts without a tag
                self.was_voided = self.was_voided or bool(self.shown)
                self.shown = ready = ""
            else:
                ready += before
                self._is_thinking = True
        if self._is_thinking:
            self._held = self._held[-_LONGEST_TAG:]
            return self._show(ready)
        opened = self._held.rfind("<", max(len(self._held) - _LONGEST_TAG, 0))
        cut = opened if opened >= 0 else len(self._held)
        if self._sources is not None and (link := _MAY_LINK.search(self._held[:cut])) is not None:
            cut = link.start()
        ready, self._held = ready + self._held[:cut], self._held[cut:]
        if not self.shown and _MAY_REFUSE.fullmatch(ready):
            self._held = ready + self._held
            return ""
        return self._show(ready)

    def finish(self) -> str:
        """Return what was held back, at the end of the stream."""
        held, self._held = self._held, ""
        return "" if self._is_thinking else self._show(held)

    def _without_link(self, link: re.Match[str]) -> str:
        is_image, label, target = link.groups()
        if target in (self._sources or ()):
            return link[0]
        if label.isdecimal():
            return f"[{label}]"  # a citation
        return "" if is_image else label

    def _show(self, text: str) -> str:
        if not self.shown:
            if (refusal := _REFUSAL.match(text)) is not None:
                self.refused = True
                text = text[refusal.end() :]
            text = text.lstrip()
        if self._sources is not None:
            text = _LINK.sub(self._without_link, text)
        self.shown += text
        return text
