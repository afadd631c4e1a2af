"""What all chunkers share: the sections and fragments of a document, and the way from spans to passages.

Each chunker decides which fragments make a passage.
"""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from rag_assets.chunking.boundaries import LEAD_IN, SPLITTERS, Splitter, halves, spans_between, split_near
from rag_assets.chunking.context import CONTEXT_VERSIONS, contexts, table_header
from rag_assets.chunking.passage import Passage
from rag_assets.chunking.tokens import MAX_CHARACTERS_PER_TOKEN, DocumentTokens, TokenCounter, span_batches
from rag_assets.extraction.document import Block, BlockKind, ExtractedDocument
from rag_assets.extraction.registry import heading_text
from rag_assets.options import SMALLEST_WINDOW, ContextName


@dataclass(frozen=True, slots=True)
class Fragment:
    """A block, or a piece of one that is larger than the window.

    `cuts` are the remaining ways to cut it. A heading stays with the fragment after it; a lead-in does, if both fit
    into one passage.
    """

    start: int
    end: int
    tokens: int
    cuts: tuple[Splitter, ...]
    kind: BlockKind
    is_heading: bool = False
    is_lead_in: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and the fragments up to the next one; `parents` identifies the sections around it."""

    path: tuple[str, ...]
    parents: tuple[int, ...]
    fragments: list[Fragment]
    tokens: int

    @property
    def start(self) -> int:
        """The offset of its first character."""
        return self.fragments[0].start

    @property
    def ends_in_heading(self) -> bool:
        """Whether nothing follows its heading."""
        return self.fragments[-1].is_heading


class TokenBudget:
    """The limits of a passage, and the tokens of its document."""

    def __init__(self, tokens: DocumentTokens, limit: int) -> None:
        self.text = tokens.text
        self.limit = limit
        self.max_characters = limit * MAX_CHARACTERS_PER_TOKEN
        self.tokens = tokens

    def fit(self, fragments: Sequence[Fragment], tokens: int, limit: int | None = None) -> bool:
        """Return whether a passage of these fragments, with so many tokens, keeps the limits."""
        if tokens > (self.limit if limit is None else limit):
            return False
        return fragments[-1].end - fragments[0].start <= self.max_characters


def sections_of(document: ExtractedDocument, budget: TokenBudget) -> list[Section]:
    """Return the document's sections in order, with a fragment per block."""
    sections: list[Section] = []
    open_headings: list[tuple[int, int, str]] = []  # level, number of the section, text
    fragments: list[Fragment] = []

    def close() -> None:
        if fragments:
            path = tuple(words for _, _, words in open_headings)
            parents = tuple(number for _, number, _ in open_headings[:-1])
            sections.append(Section(path, parents, fragments, sum(fragment.tokens for fragment in fragments)))

    for index, block in enumerate(document.blocks):
        if block.kind is BlockKind.HEADING:
            close()
            fragments = []
            while open_headings and open_headings[-1][0] >= block.level:
                open_headings.pop()
            open_headings.append((block.level, index, heading_text(document, block)))
        is_last = index + 1 == len(document.blocks)
        behind = block.end if is_last else document.blocks[index + 1].start
        fragments.append(_fragment(document.text, block, budget.tokens.count(block.start, behind)))
    close()
    return sections


def _fragment(text: str, block: Block, tokens: int) -> Fragment:
    is_lead_in = block.kind is BlockKind.PARAGRAPH and text.endswith(LEAD_IN, block.start, block.end)
    return Fragment(
        block.start,
        block.end,
        tokens,
        SPLITTERS[block.kind],
        block.kind,
        is_heading=block.kind is BlockKind.HEADING,
        is_lead_in=is_lead_in,
    )


def group_sections(sections: list[Section], budget: int, min_tokens: int) -> list[list[Section]]:
    """Return the sections to cut together: most are alone, tiny ones join neighbours with the same parent."""
    groups: list[list[Section]] = []
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

    # A tiny group at the end joins the one before it.
    merged: list[list[Section]] = []
    totals: list[int] = []
    for group, size in zip(groups, sizes, strict=True):
        if merged and size < min_tokens and totals[-1] + size <= budget and _is_beside(merged[-1][0], group[0]):
            merged[-1] += group
            totals[-1] += size
        else:
            merged.append(group)
            totals.append(size)
    return merged


def _is_beside(first: Section, other: Section) -> bool:
    """Return whether `other` is inside the parent section of `first`."""
    return other.parents[: len(first.parents)] == first.parents


def cut_fragment(fragment: Fragment, budget: TokenBudget, limit: int) -> list[Fragment]:
    """Cut a fragment into pieces of at most `limit` tokens, as coarsely as possible."""
    for used, cut in enumerate(fragment.cuts, start=1):
        spans = spans_between(budget.text, fragment.start, fragment.end, cut(budget.text, fragment.start, fragment.end))
        if len(spans) > 1:
            cuts = fragment.cuts[used:]
            break
    else:
        spans, cuts = list(_even_cuts(fragment, budget, limit)), ()
        if len(spans) == 1:
            return [fragment]
    pieces: list[Fragment] = []
    for index, (start, end) in enumerate(spans):
        is_last = index + 1 == len(spans)
        tokens = budget.tokens.count(start, end if is_last else spans[index + 1][0])
        piece = Fragment(
            start, end, tokens, cuts, fragment.kind, is_last and fragment.is_heading, is_last and fragment.is_lead_in
        )
        if budget.fit([piece], tokens, limit):
            pieces.append(piece)
        else:
            pieces += cut_fragment(piece, budget, limit)
    return pieces


def _even_cuts(fragment: Fragment, budget: TokenBudget, limit: int) -> Iterator[tuple[int, int]]:
    """Cut between tokens into pieces of similar size, at white space if there is some nearby."""
    start, end = fragment.start, fragment.end
    while start < end:
        tokens, characters = budget.tokens.count(start, end), end - start
        pieces = max(-(-tokens // limit), -(-characters // budget.max_characters))
        if pieces <= 1:
            yield from spans_between(budget.text, start, end, [])
            return
        cut = min(budget.tokens.after(start, -(-tokens // pieces)), start + budget.max_characters, end)
        cut = split_near(budget.text, start, cut)
        yield from spans_between(budget.text, start, cut, [])
        start = cut


class SectionChunker(ABC):
    """Cuts a document section by section; subclasses implement `cut`.

    Sections under `min_tokens` join the next ones with the same parent. `window` is what the model reads, including the
    context; it defaults to `max_tokens`. A passage with more than `max_tokens` in the model's own tokens is cut again.
    Raises ValueError for an unusable window.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        *,
        max_tokens: int,
        min_tokens: int,
        window: int | None,
        context: ContextName,
    ) -> None:
        if max_tokens < SMALLEST_WINDOW:
            raise ValueError(f"max_tokens is {max_tokens}, but must be at least {SMALLEST_WINDOW} to fit every text")
        if not 0 <= min_tokens <= max_tokens:
            raise ValueError(f"min_tokens is {min_tokens}, but must be between 0 and max_tokens ({max_tokens})")
        window = max_tokens if window is None else window
        if window < max_tokens:
            raise ValueError(f"max_tokens is {max_tokens}, but must not exceed the window ({window})")
        self.min_tokens = min_tokens
        self._counter = TokenCounter(tokenizer)
        self._max_tokens = max_tokens
        self._window = window
        self._budget = max_tokens - self._counter.special_tokens
        self._context: ContextName = context
        # The version includes everything that changes a cut or the embedded text.
        self.version = (
            f"{name}/{max_tokens}/{min_tokens}/{self._counter.vocabulary}+{CONTEXT_VERSIONS[context]}/{window}"
        )

    @abstractmethod
    def cut(self, fragments: Sequence[Fragment], budget: TokenBudget) -> list[tuple[int, int]]:
        """Return spans in order that cover the fragments, each of at most `budget.limit` tokens."""

    def chunk(self, document: ExtractedDocument) -> list[Passage]:
        """Return the passages in order; together they cover the text once, except for white space."""
        if not document.blocks:
            return []
        tokens = self._counter.read(document)
        budget = TokenBudget(tokens, self._budget)
        sections = sections_of(document, budget)
        spans: list[tuple[int, int]] = []
        for group in group_sections(sections, self._budget, self.min_tokens):
            spans += self.cut([fragment for section in group for fragment in section.fragments], budget)

        block_starts = [block.start for block in document.blocks]
        section_of = [section for section in sections for _ in section.fragments]
        passages: list[Passage] = []
        for (start, end), count in self._fit(tokens, spans):
            index = bisect_right(block_starts, start) - 1
            block, section = document.blocks[index], section_of[index]
            header = table_header(document, block, start)
            context, count = self._context_of(document, section, header, tokens, (start, end), count)
            text = document.text[start:end]
            passages.append(Passage(text, start, end, section.path, block.page, count, context, header))
        return passages

    def _fit(self, tokens: DocumentTokens, spans: Iterable[tuple[int, int]]) -> list[tuple[tuple[int, int], int]]:
        """Return the spans with their token counts; cut those that do not fit the window.

        Where the sum of counts is uncertain (a word that is cut has other tokens), the tokenizer counts again.
        """
        fitting: list[tuple[tuple[int, int], int]] = []
        for batch in span_batches(spans):
            for span, count in zip(batch, self._counts(tokens, batch), strict=True):
                if count <= self._max_tokens:
                    fitting.append((span, count))
                else:
                    fitting += self._fit(tokens, halves(tokens.text, *span))
        return fitting

    def _counts(self, tokens: DocumentTokens, spans: Sequence[tuple[int, int]]) -> list[int]:
        unsure = [span for span in spans if not tokens.is_exact(*span)]
        counted = iter(self._counter.count([tokens.text[start:end] for start, end in unsure]))
        waiting = set(unsure)
        return [
            next(counted) if span in waiting else tokens.count(*span) + self._counter.special_tokens for span in spans
        ]

    def _context_of(
        self,
        document: ExtractedDocument,
        section: Section,
        header: str,
        tokens: DocumentTokens,
        span: tuple[int, int],
        count: int,
    ) -> tuple[str, int]:
        """Return the longest context that fits into the window, and the tokens of the passage with it."""
        start, end = span
        # A passage that begins with its heading needs no context for it.
        own = section.path[-1:] if start == section.start else ()
        names = [name for name in (document.name, document.title, *section.path) if name not in own]
        for context in contexts(self._context, names, header, section.start, tokens, start):
            if self._context == "neighbours" and not header and tokens.is_exact(start - len(context), end):
                together = tokens.count(start - len(context), end) + self._counter.special_tokens
            else:
                together = self._counter.count([context + document.text[start:end]])[0]
            if together <= self._window:
                return context, together
        return "", count
