"""Cut sections where the subject changes, with static vectors of sentences and an exact optimisation.

A section is split into units (sentences, list items, whole tables). Of all ways to join adjacent units into passages
between the minimum and maximum number of tokens, the cheapest one is chosen. The cost of a passage is the sum of the
differences between its units, the deviation from the best length, and the cost of a cut at its beginning.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from rag_assets.chunking.boundaries import at_items, at_lines, ends_sentence, sentence_starts, spans_between
from rag_assets.chunking.sections import Fragment, SectionChunker, TokenBudget, cut_fragment
from rag_assets.chunking.static_vectors import StaticVectors
from rag_assets.extraction.document import BlockKind
from rag_assets.options import ContextName

Floats = npt.NDArray[np.float32]

_MOST_UNITS: Final = 64
"""Maximum number of units in a passage. Tiny units are joined first, so passages rarely have this many."""
_UNITS_AT_ONCE: Final = 4096
"""Number of units that are optimised together, which bounds the memory for long sections."""
_UNITS_IN_DOUBT: Final = 8
_NOTHING: Final = 1e-3
"""A vector this short consists of rounding errors only."""
_TINY_SHARE: Final = 16
"""Units smaller than this fraction of a passage join a neighbour."""

# Costs of cuts that are made only if there is no alternative; the highest is the last resort.
_TOO_SHORT: Final = 1e3
_AFTER_LEAD_IN: Final = 1e2
_AFTER_HEADING: Final = 1e6


@dataclass(frozen=True, slots=True)
class CutCosts:
    """Weights of the optimisation, tuned on the questions of benchmarks.quality."""

    best_share: float = 0.8
    """The preferred length of a passage, as a fraction of the maximum."""
    length: float = 1.0
    scatter: float = 3.0
    sentence: float = 0.3
    line: float = 0.1
    wrap: float = 0.6
    item: float = 0.1
    block: float = 0.0
    forced: float = 1.0

    @property
    def version(self) -> str:
        """A part of the chunker's version, because the costs determine the cuts."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:4]


@dataclass(frozen=True, slots=True)
class _Unit:
    """A piece of text that is not cut further; `price` is the cost of a cut before it."""

    start: int
    end: int
    tokens: int
    price: float


class SemanticChunker(SectionChunker):
    """Cuts sections into passages on one subject, with `min_tokens` to `max_tokens` tokens including special ones.

    Structure takes precedence: a passage never contains text of two sections, a heading or a lead-in stays with what
    follows, and tables and code are cut only if they are larger than a passage.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vectors: StaticVectors,
        *,
        max_tokens: int,
        min_tokens: int | None = None,
        window: int | None = None,
        context: ContextName = "none",
        prices: CutCosts = CutCosts(),
    ) -> None:
        super().__init__(
            f"semantic-1/{vectors.version}/{prices.version}",
            tokenizer,
            max_tokens=max_tokens,
            min_tokens=max_tokens // 4 if min_tokens is None else min_tokens,
            window=window,
            context=context,
        )
        self._vectors = vectors
        self._prices = prices

    def cut(self, fragments: Sequence[Fragment], budget: TokenBudget) -> list[tuple[int, int]]:
        """Return the spans of the cheapest passages."""
        units = self._units(fragments, budget)
        spans: list[tuple[int, int]] = []
        first = 0
        while first < len(units):
            batch = units[first : first + _UNITS_AT_ONCE]
            firsts = self._cheapest(batch, budget)
            if first + len(batch) < len(units) and len(firsts) > 1:
                firsts, taken = firsts[:-1], firsts[-1]  # the last passage may continue in the next batch
            else:
                taken = len(batch)
            for begin, end in zip(firsts, [*firsts[1:], taken], strict=True):
                spans.append((batch[begin].start, batch[end - 1].end))
            first += taken
        return spans

    def _units(self, fragments: Sequence[Fragment], budget: TokenBudget) -> list[_Unit]:
        """Split the fragments into units, with the cost of a cut before each."""
        units: list[_Unit] = []
        headings = 0  # tokens of the headings directly before the fragment
        price = 0.0
        for fragment in fragments:
            limit = budget.limit - headings if headings <= budget.limit // 2 else budget.limit
            pieces = _pieces(fragment, budget, limit, self._prices)
            units.append(_Unit(pieces[0].start, pieces[0].end, pieces[0].tokens, price))
            units += pieces[1:]
            if fragment.is_heading:
                headings += fragment.tokens
                price = _AFTER_HEADING
            else:
                headings = 0
                price = _AFTER_LEAD_IN if fragment.is_lead_in else self._prices.block
        return _joined(units, budget)

    def _cheapest(self, units: Sequence[_Unit], budget: TokenBudget) -> list[int]:
        """Return the first unit of each passage, for the cheapest way to make passages of all units."""
        count = len(units)
        costs = self._costs(units, budget)
        best = [0.0] * (count + 1)
        before = [0] * (count + 1)
        for end in range(1, count + 1):
            lowest, at = np.inf, end - 1
            row = costs[end - 1]
            for size in range(1, min(end, len(row)) + 1):
                cost = best[end - size] + row[size - 1]
                if cost < lowest:
                    lowest, at = cost, end - size
            best[end], before[end] = lowest, at
        firsts: list[int] = []
        end = count
        while end > 0:
            end = before[end]
            firsts.append(end)
        return firsts[::-1]

    def _costs(self, units: Sequence[_Unit], budget: TokenBudget) -> list[list[float]]:
        """Return at ``[i][k]`` the cost of a passage of ``k + 1`` units that ends with unit ``i``; inf if too long."""
        prices, limit, count = self._prices, budget.limit, len(units)
        tokens = np.array([unit.tokens for unit in units], np.float64)
        starts = np.array([unit.start for unit in units], np.int64)
        ends = np.array([unit.end for unit in units], np.int64)
        price = np.array([unit.price for unit in units], np.float64)
        first = budget.tokens.indexes([unit.start for unit in units])
        last = budget.tokens.index(units[-1].end)
        vectors = _contrasted(self._vectors.units(budget.tokens.ids[first[0] : last], first - first[0]))
        vectors *= tokens[:, None].astype(np.float32)
        weights = np.sqrt(np.einsum("ij,ij->i", vectors, vectors)).astype(np.float64)

        best = prices.best_share * limit
        least = self.min_tokens - self._counter.special_tokens
        most = min(_MOST_UNITS, count)
        costs = np.full((count, most), np.inf)
        length, weight, sums = tokens.copy(), weights.copy(), vectors.copy()
        for size in range(1, most + 1):
            if size > 1:
                length = length[:-1] + tokens[size - 1 :]
                weight = weight[:-1] + weights[size - 1 :]
                sums = sums[:-1] + vectors[size - 1 :]
            fits = (length <= limit) & (ends[size - 1 :] - starts[: count - size + 1] <= budget.max_characters)
            if size == 1:
                fits[:] = True  # even a single character with more tokens than the budget
            elif not fits.any():
                return costs[:, : size - 1].tolist()
            scatter = (weight - np.sqrt(np.einsum("ij,ij->i", sums, sums))) / best
            cost = prices.length * (length / best - 1) ** 2 + prices.scatter * scatter + price[: count - size + 1]
            cost += np.where(length < least, _TOO_SHORT * (2 - length / max(least, 1)), 0)
            costs[size - 1 :, size - 1] = np.where(fits, cost, np.inf)
        return costs.tolist()


def _contrasted(vectors: Floats) -> Floats:
    """Subtract the common part of the vectors, because the subject of the whole text hides changes within it.

    With few units, the estimate of the common part is uncertain, so less of it is subtracted.
    """
    common: Floats = vectors.sum(axis=0) / np.float32(len(vectors) + _UNITS_IN_DOUBT)
    apart: Floats = vectors - common
    apart[~vectors.any(axis=1)] = 0
    norms = np.sqrt(np.einsum("ij,ij->i", apart, apart))
    apart[norms <= _NOTHING] = 0
    apart /= np.where(norms > _NOTHING, norms, np.float32(1))[:, None]
    return apart


def _pieces(fragment: Fragment, budget: TokenBudget, limit: int, prices: CutCosts) -> list[_Unit]:
    """Split a fragment into units. The first one has at most `limit` tokens, and its price is not set."""
    text = budget.text
    if fragment.kind is BlockKind.PARAGRAPH:
        cuts = sentence_starts(text, fragment.start, fragment.end)
    elif fragment.kind is BlockKind.LIST:
        cuts = at_items(text, fragment.start, fragment.end)
    elif fragment.kind is BlockKind.HEADING or budget.fit([fragment], fragment.tokens, limit):
        cuts = []
    else:
        cuts = at_lines(text, fragment.start, fragment.end)
    spans = spans_between(text, fragment.start, fragment.end, cuts)
    if len(spans) > 1:
        firsts = budget.tokens.indexes([start for start, _ in spans])
        counts = [*np.diff(firsts).tolist(), fragment.tokens - int(firsts[-1] - firsts[0])]
    else:
        counts = [fragment.tokens]
    units: list[_Unit] = []
    for (start, end), count in zip(spans, counts, strict=True):
        price = _cost(text, fragment.kind, units[-1].end, start, prices) if units else 0.0
        most = budget.limit if units else limit
        if count <= most and end - start <= budget.max_characters:
            units.append(_Unit(start, end, count, price))
            continue
        finer = (at_items, at_lines, sentence_starts) if fragment.kind is BlockKind.LIST else (at_lines,)
        forced = cut_fragment(Fragment(start, end, count, finer, fragment.kind), budget, most)
        units.append(_Unit(forced[0].start, forced[0].end, forced[0].tokens, price))
        units += [_Unit(piece.start, piece.end, piece.tokens, prices.forced) for piece in forced[1:]]
    return units


def _cost(text: str, kind: BlockKind, end: int, start: int, prices: CutCosts) -> float:
    """Return the cost of a cut between two pieces of a block."""
    if kind is BlockKind.LIST:
        return prices.item
    if kind is not BlockKind.PARAGRAPH:
        return prices.line
    if "\n" not in text[end:start]:
        return prices.sentence
    return prices.line if ends_sentence(text, end) else prices.wrap


def _joined(units: Sequence[_Unit], budget: TokenBudget) -> list[_Unit]:
    """Join each tiny unit to the neighbour on the side where a cut would be more expensive."""
    tiny = budget.limit // _TINY_SHARE
    joined: list[_Unit] = []
    for number, unit in enumerate(units):
        if joined:
            before = joined[-1]
            following = units[number + 1].price if number + 1 < len(units) else 0.0
            joins = before.tokens < tiny or (unit.tokens < tiny and unit.price >= following)
            together = before.tokens + unit.tokens
            if joins and together <= budget.limit and unit.end - before.start <= budget.max_characters:
                joined[-1] = replace(before, end=unit.end, tokens=together)
                continue
        joined.append(unit)
    return joined
