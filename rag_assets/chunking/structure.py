"""Packs whole blocks into passages, filling each up to the window."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from rag_assets.chunking.sections import SectionChunker, TokenBudget, Unit, cut_unit
from rag_assets.options import ContextName

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DEFAULT_MIN_TOKENS: Final = 64


class StructureChunker(SectionChunker):
    """Packs whole blocks of a section into passages of at most `max_tokens`, special tokens included.

    Blocks larger than the window are cut at their own seams (list items, lines, sentences), then at white
    space, then between tokens. A heading stays with what follows it, as does a short line that ends in a
    colon; sections under `min_tokens` join the next ones under the same parent.
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
        """`window` is what the model reads, context included; without it, `max_tokens`."""
        super().__init__(
            "structure-1", tokenizer, max_tokens=max_tokens, min_tokens=min_tokens, window=window, context=context
        )

    def cut(self, atoms: Sequence[Unit], room: TokenBudget) -> list[tuple[int, int]]:
        return _pack(atoms, room, self.min_tokens)


def _pack(atoms: Iterable[Unit], room: TokenBudget, min_tokens: int) -> list[tuple[int, int]]:
    """Spans of consecutive atoms, filled up to the budget."""
    packed: list[list[Unit]] = []
    waiting = deque(atoms)
    current: list[Unit] = []
    size = 0
    while waiting:
        atom = waiting.popleft()
        if room.fit([*current[:1], atom], size + atom.tokens):
            current.append(atom)
            size += atom.tokens
            continue
        held = _first_held(current, atom, room)
        if held == 0:
            # Nothing is open, or only headings, which wait for as much of the atom as there is room for.
            pieces = cut_unit(atom, room, room.budget - size) if size <= room.budget // 2 else []
            if len(pieces) > 1 and room.fit([*current[:1], pieces[0]], size + pieces[0].tokens):
                waiting.extendleft(reversed(pieces))
                continue
            # Headings as long as half a window, or a single character: it stands alone.
            held = len(current)
            if not current:
                packed.append([atom])
                continue
        packed.append(current[:held])
        current = current[held:]
        size = sum(kept.tokens for kept in current)
        waiting.appendleft(atom)
    if current:
        packed.append(current)
    _mend_tail(packed, room, min_tokens)
    return [(passage[0].start, passage[-1].end) for passage in packed]


def _first_held(current: Sequence[Unit], following: Unit, room: TokenBudget) -> int:
    """The index in `current` from which on the atoms move to the next passage, with `following`."""
    first = len(current)
    if current and current[-1].is_lead_in:
        first = _before_headings(current, first - 1)
        moved = sum(atom.tokens for atom in current[first:])
        # One that does not fit but fills a passage of its own stays whole; a larger one is cut in any case.
        fits = room.fit([current[first], following], moved + following.tokens)
        return first if fits or following.tokens > room.budget else len(current)
    return _before_headings(current, first)


def _before_headings(atoms: Sequence[Unit], index: int) -> int:
    while index > 0 and atoms[index - 1].is_heading:
        index -= 1
    return index


def _mend_tail(packed: list[list[Unit]], room: TokenBudget, min_tokens: int) -> None:
    """Move atoms from the last passage but one into a last one that is left with next to nothing."""
    if len(packed) < 2:
        return
    before, tail = packed[-2:]
    size_before, size = (sum(atom.tokens for atom in passage) for passage in (before, tail))
    while size < min_tokens and len(before) > 1 and not before[-2].is_heading:
        atom = before[-1]
        if size + atom.tokens > size_before - atom.tokens or not room.fit([atom, tail[-1]], size + atom.tokens):
            return
        tail.insert(0, before.pop())
        size += atom.tokens
        size_before -= atom.tokens
