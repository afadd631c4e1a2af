"""Pack whole blocks into passages, filling each up to the window."""

from collections import deque
from collections.abc import Sequence
from typing import Final

from tokenizers import Tokenizer

from rag_assets.chunking.sections import Fragment, SectionChunker, TokenBudget, cut_fragment
from rag_assets.options import ContextName

DEFAULT_MIN_TOKENS: Final = 64


class StructureChunker(SectionChunker):
    """Packs whole blocks of a section into passages of at most `max_tokens`, including special tokens.

    Blocks larger than the window are cut at list items, lines or sentences, then at white space, then between tokens. A
    heading or a lead-in stays with the text after it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_tokens: int,
        min_tokens: int = DEFAULT_MIN_TOKENS,
        window: int | None = None,
        context: ContextName = "none",
    ) -> None:
        super().__init__(
            "structure-1", tokenizer, max_tokens=max_tokens, min_tokens=min_tokens, window=window, context=context
        )

    def cut(self, fragments: Sequence[Fragment], budget: TokenBudget) -> list[tuple[int, int]]:
        """Return spans of consecutive fragments, filled up to the budget."""
        packed: list[list[Fragment]] = []
        waiting = deque(fragments)
        current: list[Fragment] = []
        size = 0
        while waiting:
            fragment = waiting.popleft()
            if budget.fit([*current[:1], fragment], size + fragment.tokens):
                current.append(fragment)
                size += fragment.tokens
                continue
            carried = _first_carried(current, fragment, budget)
            if carried == 0:
                # Nothing is open, or only headings, which take as much of the fragment as fits.
                pieces = cut_fragment(fragment, budget, budget.limit - size) if size <= budget.limit // 2 else []
                if len(pieces) > 1 and budget.fit([*current[:1], pieces[0]], size + pieces[0].tokens):
                    waiting.extendleft(reversed(pieces))
                    continue
                # A heading as long as half a window, or a single character, is a passage of its own.
                carried = len(current)
                if not current:
                    packed.append([fragment])
                    continue
            packed.append(current[:carried])
            current = current[carried:]
            size = sum(kept.tokens for kept in current)
            waiting.appendleft(fragment)
        if current:
            packed.append(current)
        _fill_tail(packed, budget, self.min_tokens)
        return [(passage[0].start, passage[-1].end) for passage in packed]


def _first_carried(current: Sequence[Fragment], following: Fragment, budget: TokenBudget) -> int:
    """Return the index in `current` from which the fragments move to the next passage, with `following`."""
    first = len(current)
    if current and current[-1].is_lead_in:
        first = _before_headings(current, first - 1)
        moved = sum(fragment.tokens for fragment in current[first:])
        # A fragment that does not fit but fits into a passage of its own stays whole; a larger one is cut anyway.
        fits = budget.fit([current[first], following], moved + following.tokens)
        return first if fits or following.tokens > budget.limit else len(current)
    return _before_headings(current, first)


def _before_headings(fragments: Sequence[Fragment], index: int) -> int:
    while index > 0 and fragments[index - 1].is_heading:
        index -= 1
    return index


def _fill_tail(packed: list[list[Fragment]], budget: TokenBudget, min_tokens: int) -> None:
    """Move fragments from the second to last passage into the last if that is nearly empty."""
    if len(packed) < 2:
        return
    before, tail = packed[-2:]
    size_before, size = (sum(fragment.tokens for fragment in passage) for passage in (before, tail))
    while size < min_tokens and len(before) > 1 and not before[-2].is_heading:
        fragment = before[-1]
        if size + fragment.tokens > size_before - fragment.tokens or not budget.fit(
            [fragment, tail[-1]], size + fragment.tokens
        ):
            return
        tail.insert(0, before.pop())
        size += fragment.tokens
        size_before -= fragment.tokens
