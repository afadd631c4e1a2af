"""Cuts an extracted document into passages that fit the embedding model's window, along the document's
structure.

Pure functions of text and tokenizer: nothing here stores, embeds or knows a file format.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from rag_assets.extraction import Block, BlockKind, ExtractedDocument, heading_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DEFAULT_MIN_TOKENS: Final = 64
# One character can need this many tokens (a ligature that unfolds into a phrase), so that smaller windows
# cannot hold every text.
SMALLEST_WINDOW: Final = 32
# A word that the vocabulary does not know is one token however long it is, so tokens alone do not bound a
# passage.
MAX_CHARACTERS_PER_TOKEN: Final = 16

# Texts are tokenised in pieces of at most this many characters, in batches of about this many: memory stays
# flat.
_PIECE_CHARACTERS: Final = 50_000
_BATCH_CHARACTERS: Final = 1_000_000

# A dot before a lower-case word is an abbreviation more often than an end; CJK marks need no space after
# them.
_SENTENCE_END = re.compile(
    r"""[.!?…]["'”’»)\]]*+(?=\s++[^\sa-z])|[。！？｡](?![。！？｡])[」』）】”’]*+""",
)
_LINE_END = re.compile(r"\n")
_ITEM = re.compile(r"^([ \t]*)(?:[-*+•]|\d{1,9}[.)])[ \t]", re.MULTILINE)
_GAPS: Final = (" ", "\n", "\t", "\u3000", "、", "，")
_LEAD_IN: Final = (":", "：")
# Combining marks, joiners and variation selectors belong to the character before them.
_JOINED = re.compile(r"[\u0300-\u036f\u200d\u3099\u309a\ufe00-\ufe0f\U0001f3fb-\U0001f3ff]")


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of a document that is embedded and cited as one.

    `text` is `document.text[start:end]`, offsets in characters. `heading_path` names the section that the
    passage begins in, outermost first, with that section's own heading. `page` is the page of its first
    character, where the format has pages. `tokens` counts what the model sees, special tokens included.
    """

    text: str
    start: int
    end: int
    heading_path: tuple[str, ...]
    page: int | None
    tokens: int


class Chunker(Protocol):
    """Cuts documents into passages; equal versions cut equal documents equally."""

    @property
    def version(self) -> str: ...

    def chunk(self, document: ExtractedDocument) -> list[Passage]: ...


class StructureChunker:
    """Packs whole blocks of a section into passages of at most `max_tokens`, special tokens included.

    Blocks larger than the window are cut at their own seams (list items, lines, sentences), then at white
    space, then between tokens. A heading stays with what follows it, as does a short line that ends in a
    colon; sections under `min_tokens` join the next ones under the same parent. Every passage is counted by
    the tokenizer before it is returned, and cut again if the count is over the window.
    """

    def __init__(self, tokenizer: Tokenizer, *, max_tokens: int, min_tokens: int = DEFAULT_MIN_TOKENS) -> None:
        """Copies the tokenizer, without truncation and padding. Raises ValueError for an unusable window."""
        from tokenizers import Tokenizer as TokenizerClass

        if max_tokens < SMALLEST_WINDOW:
            raise ValueError(f"max_tokens is {max_tokens}; a window below {SMALLEST_WINDOW} cannot hold every text")
        if not 0 <= min_tokens <= max_tokens:
            raise ValueError(f"min_tokens is {min_tokens}; it lies between 0 and max_tokens ({max_tokens})")
        self._tokenizer = TokenizerClass.from_str(tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._max_tokens = max_tokens
        self._min_tokens = min_tokens
        self._budget = max_tokens - self._tokenizer.num_special_tokens_to_add(False)
        # Another vocabulary cuts elsewhere, so it belongs to the version.
        vocabulary = hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()[:8]
        self._version = f"structure-1/{max_tokens}/{min_tokens}/{vocabulary}"

    @property
    def version(self) -> str:
        return self._version

    def chunk(self, document: ExtractedDocument) -> list[Passage]:
        """The passages in order; together they hold all text of the blocks that is not white space, once."""
        if not document.blocks:
            return []
        sizes = _Sizes(document.text, self._token_starts(document), self._budget)
        sections = _sections(document, sizes)
        spans: list[tuple[int, int]] = []
        for group in _group(sections, self._budget, self._min_tokens):
            atoms = [atom for section in group for atom in section.atoms]
            spans += _pack(atoms, sizes, self._min_tokens)
        counted = self._fit(document.text, spans)

        block_starts = [block.start for block in document.blocks]
        paths = [section.path for section in sections for _ in section.atoms]
        passages: list[Passage] = []
        for (start, end), tokens in counted:
            block = bisect_right(block_starts, start) - 1
            page = document.blocks[block].page
            passages.append(Passage(document.text[start:end], start, end, paths[block], page, tokens))
        return passages

    def _token_starts(self, document: ExtractedDocument) -> array[int]:
        """The offsets in the text where tokens begin, ascending; each block is tokenised once."""
        starts: array[int] = array("L")
        for batch in _batches(_pieces(document)):
            texts = [document.text[start:end] for start, end in batch]
            encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
            for (base, _), encoding in zip(batch, encodings, strict=True):
                starts.extend([base + offsets[0] for offsets in encoding.offsets])
        return starts

    def _fit(self, text: str, spans: Iterable[tuple[int, int]]) -> list[tuple[tuple[int, int], int]]:
        """Spans that keep to the window, with their token counts.

        Counts in parts do not always add up: a cut inside a word makes other tokens of its halves. So the
        tokenizer has the last word.
        """
        fitting: list[tuple[tuple[int, int], int]] = []
        for batch in _batches(spans):
            for span, count in zip(batch, self._count(text, batch), strict=True):
                if count <= self._max_tokens:
                    fitting.append((span, count))
                else:
                    fitting += self._fit(text, _halves(text, *span))
        return fitting

    def _count(self, text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
        encodings = self._tokenizer.encode_batch_fast([text[start:end] for start, end in spans])
        return [len(encoding) for encoding in encodings]


# Where a stretch of text can be cut: text, start, end to offsets, ascending and inside.
_Seam = Callable[[str, int, int], list[int]]


@dataclass(frozen=True, slots=True)
class _Atom:
    """What is packed whole: a block, or a piece of one that is larger than the window.

    `seams` are the ways to cut it that have not been used yet. A heading is bound to what follows it; a
    lead-in is, if both fit into one passage.
    """

    start: int
    end: int
    tokens: int
    seams: tuple[_Seam, ...]
    is_heading: bool = False
    is_lead_in: bool = False


@dataclass(frozen=True, slots=True)
class _Section:
    """A heading and what follows it up to the next one; `parents` identifies the sections around it."""

    path: tuple[str, ...]
    parents: tuple[int, ...]
    atoms: list[_Atom]
    tokens: int

    @property
    def ends_in_heading(self) -> bool:
        return self.atoms[-1].is_heading


class _Sizes:
    """Sizes of stretches of one text, from token offsets that were computed once."""

    def __init__(self, text: str, token_starts: array[int], budget: int) -> None:
        self.text = text
        self.budget = budget
        self.max_characters = budget * MAX_CHARACTERS_PER_TOKEN
        self._starts = token_starts

    def tokens(self, start: int, end: int) -> int:
        return bisect_left(self._starts, end) - bisect_left(self._starts, start)

    def fit(self, atoms: Sequence[_Atom], tokens: int, limit: int | None = None) -> bool:
        """Whether a passage from the first to the last of `atoms`, with `tokens`, keeps to the limits."""
        if tokens > (self.budget if limit is None else limit):
            return False
        return atoms[-1].end - atoms[0].start <= self.max_characters

    def after(self, start: int, count: int) -> int:
        """The offset where `count` tokens from `start` on are over."""
        index = bisect_left(self._starts, start) + count
        return self._starts[index] if index < len(self._starts) else len(self.text)


def _pieces(document: ExtractedDocument) -> Iterator[tuple[int, int]]:
    """Spans to tokenise: each block with the white space behind it, which is a token to some vocabularies."""
    text, blocks = document.text, document.blocks
    for index, block in enumerate(blocks):
        start = block.start
        end = blocks[index + 1].start if index + 1 < len(blocks) else block.end
        while end - start > _PIECE_CHARACTERS:
            cut = _seam_near(text, start, start + _PIECE_CHARACTERS)
            yield start, cut
            start = cut
        yield start, end


def _batches(spans: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    batch: list[tuple[int, int]] = []
    characters = 0
    for start, end in spans:
        batch.append((start, end))
        characters += end - start
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _sections(document: ExtractedDocument, sizes: _Sizes) -> list[_Section]:
    """The document's sections in order, with one atom for each block."""
    sections: list[_Section] = []
    open_headings: list[tuple[int, int, str]] = []  # level, number of the section, words
    atoms: list[_Atom] = []

    def close() -> None:
        if atoms:
            path = tuple(words for _, _, words in open_headings)
            parents = tuple(number for _, number, _ in open_headings[:-1])
            sections.append(_Section(path, parents, atoms, sum(atom.tokens for atom in atoms)))

    for index, block in enumerate(document.blocks):
        if block.kind is BlockKind.HEADING:
            close()
            atoms = []
            while open_headings and open_headings[-1][0] >= block.level:
                open_headings.pop()
            open_headings.append((block.level, index, heading_text(document, block)))
        is_last = index + 1 == len(document.blocks)
        behind = block.end if is_last else document.blocks[index + 1].start
        atoms.append(_atom(document.text, block, sizes.tokens(block.start, behind)))
    close()
    return sections


def _atom(text: str, block: Block, tokens: int) -> _Atom:
    is_lead_in = block.kind is BlockKind.PARAGRAPH and text.endswith(_LEAD_IN, block.start, block.end)
    return _Atom(
        block.start,
        block.end,
        tokens,
        _SEAMS[block.kind],
        is_heading=block.kind is BlockKind.HEADING,
        is_lead_in=is_lead_in,
    )


def _group(sections: list[_Section], budget: int, min_tokens: int) -> list[list[_Section]]:
    """Sections to pack together: most stand alone, tiny ones join their neighbours under one parent."""
    groups: list[list[_Section]] = []
    sizes: list[int] = []
    for section in sections:
        if groups:
            group, size = groups[-1], sizes[-1]
            joins = size < min_tokens and size + section.tokens <= budget and _is_beside(group[0], section)
            if joins or group[-1].ends_in_heading:
                group.append(section)
                sizes[-1] += section.tokens
                continue
        groups.append([section])
        sizes.append(section.tokens)

    # A tiny group that nothing follows goes to the one before it.
    merged: list[list[_Section]] = []
    totals: list[int] = []
    for group, size in zip(groups, sizes, strict=True):
        if merged and size < min_tokens and totals[-1] + size <= budget and _is_beside(merged[-1][0], group[0]):
            merged[-1] += group
            totals[-1] += size
        else:
            merged.append(group)
            totals.append(size)
    return merged


def _is_beside(first: _Section, other: _Section) -> bool:
    """Whether `other` stands under the section that `first` stands under."""
    return other.parents[: len(first.parents)] == first.parents


def _pack(atoms: Iterable[_Atom], sizes: _Sizes, min_tokens: int) -> list[tuple[int, int]]:
    """Spans of consecutive atoms, filled up to the budget."""
    packed: list[list[_Atom]] = []
    waiting = deque(atoms)
    current: list[_Atom] = []
    size = 0
    while waiting:
        atom = waiting.popleft()
        if sizes.fit([*current[:1], atom], size + atom.tokens):
            current.append(atom)
            size += atom.tokens
            continue
        held = _first_held(current, atom, sizes)
        if held == 0:
            # Nothing is open, or only headings, which wait for as much of the atom as there is room for.
            pieces = _cut(atom, sizes, sizes.budget - size) if size <= sizes.budget // 2 else []
            if len(pieces) > 1 and sizes.fit([*current[:1], pieces[0]], size + pieces[0].tokens):
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
    _mend_tail(packed, sizes, min_tokens)
    return [(passage[0].start, passage[-1].end) for passage in packed]


def _first_held(current: Sequence[_Atom], following: _Atom, sizes: _Sizes) -> int:
    """The index in `current` from which on the atoms move to the next passage, with `following`."""
    first = len(current)
    if current and current[-1].is_lead_in:
        first = _before_headings(current, first - 1)
        moved = sum(atom.tokens for atom in current[first:])
        # One that does not fit but fills a passage of its own stays whole; a larger one is cut in any case.
        fits = sizes.fit([current[first], following], moved + following.tokens)
        return first if fits or following.tokens > sizes.budget else len(current)
    return _before_headings(current, first)


def _before_headings(atoms: Sequence[_Atom], index: int) -> int:
    while index > 0 and atoms[index - 1].is_heading:
        index -= 1
    return index


def _mend_tail(packed: list[list[_Atom]], sizes: _Sizes, min_tokens: int) -> None:
    """Move atoms from the last passage but one into a last one that is left with next to nothing."""
    if len(packed) < 2:
        return
    before, tail = packed[-2:]
    size_before, size = (sum(atom.tokens for atom in passage) for passage in (before, tail))
    while size < min_tokens and len(before) > 1 and not before[-2].is_heading:
        atom = before[-1]
        if size + atom.tokens > size_before - atom.tokens or not sizes.fit([atom, tail[-1]], size + atom.tokens):
            return
        tail.insert(0, before.pop())
        size += atom.tokens
        size_before -= atom.tokens


def _cut(atom: _Atom, sizes: _Sizes, limit: int) -> list[_Atom]:
    """The pieces of an atom, of at most `limit` tokens each, at the coarsest seams that give such pieces."""
    for used, seam in enumerate(atom.seams, start=1):
        spans = _spans(sizes.text, atom.start, atom.end, seam(sizes.text, atom.start, atom.end))
        if len(spans) > 1:
            seams = atom.seams[used:]
            break
    else:
        spans, seams = list(_even_cuts(atom, sizes, limit)), ()
        if len(spans) == 1:
            return [atom]
    pieces: list[_Atom] = []
    for index, (start, end) in enumerate(spans):
        is_last = index + 1 == len(spans)
        tokens = sizes.tokens(start, end if is_last else spans[index + 1][0])
        piece = _Atom(start, end, tokens, seams, is_last and atom.is_heading, is_last and atom.is_lead_in)
        if sizes.fit([piece], tokens, limit):
            pieces.append(piece)
        else:
            pieces += _cut(piece, sizes, limit)
    return pieces


def _even_cuts(atom: _Atom, sizes: _Sizes, limit: int) -> Iterator[tuple[int, int]]:
    """Cut between tokens into pieces of about the same size, at white space where there is some nearby."""
    start, end = atom.start, atom.end
    while start < end:
        tokens, characters = sizes.tokens(start, end), end - start
        pieces = max(-(-tokens // limit), -(-characters // sizes.max_characters))
        if pieces <= 1:
            yield from _spans(sizes.text, start, end, [])
            return
        cut = min(sizes.after(start, -(-tokens // pieces)), start + sizes.max_characters, end)
        cut = _seam_near(sizes.text, start, cut)
        yield from _spans(sizes.text, start, cut, [])
        start = cut


def _seam_near(text: str, start: int, cut: int) -> int:
    """The place to cut a text from `start` on, at `cut` or before it, and always after `start`."""
    gap = _gap_before(text, (start + cut) // 2, cut)
    if gap is not None and gap > start:
        return gap
    near = cut
    while near > start + 1 and (_JOINED.match(text, near) or text[near - 1] == "\u200d"):
        near -= 1
    return near if near > start + 1 else max(cut, start + 1)


def _gap_before(text: str, low: int, high: int) -> int | None:
    """The offset behind the last white space (or CJK comma) in `text[low:high]`."""
    found = max(text.rfind(gap, low, high) for gap in _GAPS)
    return found + 1 if found >= 0 else None


def _halves(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Two parts of about the same length. Raises ValueError for a single character."""
    if end - start < 2:
        raise ValueError(f"one character (U+{ord(text[start]):04X}) makes more tokens than the window holds")
    middle = (start + end + 1) // 2
    return _spans(text, start, end, [_seam_near(text, start, min(middle + (end - start) // 8, end - 1))])


def _spans(text: str, start: int, end: int, cuts: Sequence[int]) -> list[tuple[int, int]]:
    """The stretches of `text[start:end]` between the cuts, stripped, without empty ones."""
    spans: list[tuple[int, int]] = []
    for low, high in zip([start, *cuts], [*cuts, end], strict=True):
        piece = text[low:high]
        first = low + len(piece) - len(piece.lstrip())
        last = low + len(piece.rstrip())
        if first < last:
            spans.append((first, last))
    return spans


def _at_sentences(text: str, start: int, end: int) -> list[int]:
    return [match.end() for match in _SENTENCE_END.finditer(text, start, end)]


def _at_lines(text: str, start: int, end: int) -> list[int]:
    return [match.end() for match in _LINE_END.finditer(text, start, end)]


def _at_items(text: str, start: int, end: int) -> list[int]:
    """Before the outermost list items after `start`; a list inside an item comes with the next call."""
    items = [match for match in _ITEM.finditer(text, start, end) if match.start() > start]
    indents = [len(match[1].expandtabs(4)) for match in items]
    outermost = min(indents, default=0)
    return [match.start() for match, indent in zip(items, indents, strict=True) if indent == outermost]


_SEAMS: Final[dict[BlockKind, tuple[_Seam, ...]]] = {
    BlockKind.HEADING: (_at_sentences,),
    BlockKind.PARAGRAPH: (_at_sentences, _at_lines),
    BlockKind.LIST: (_at_items, _at_items, _at_items, _at_lines, _at_sentences),
    BlockKind.TABLE: (_at_lines,),
    BlockKind.CODE: (_at_lines,),
}
