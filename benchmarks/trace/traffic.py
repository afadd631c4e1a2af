"""The questions of a trace: base questions drawn by Zipf's law, each with a wording."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from benchmarks.trace.questions import Base, Questions

Wording = Literal["original", "case and punctuation", "paraphrase", "near miss"]
SHARES: dict[Wording, float] = {"original": 0.4, "case and punctuation": 0.2, "paraphrase": 0.3, "near miss": 0.1}
"""Shares of the wordings; a base question without one falls back to another wording."""


@dataclass(frozen=True, slots=True)
class Asking:
    """One question of the trace."""

    base: Base
    text: str
    wording: Wording


def drawn(questions: Questions, count: int, exponent: float, seed: int) -> list[Asking]:
    """Draw `count` questions; the base question of rank r is drawn in proportion to ``r ** -exponent``."""
    draw = random.Random(f"{seed} {exponent}")
    firsts = [base for base in questions.bases if base.near is None]
    near: dict[int, list[Base]] = {}
    for base in questions.bases:
        if base.near is not None:
            near.setdefault(base.near, []).append(base)
    ranked = draw.sample(firsts, len(firsts))
    weights = list(accumulate(rank**-exponent for rank in range(1, len(ranked) + 1)))
    names, shares = list(SHARES), list(SHARES.values())
    trace: list[Asking] = []
    for base in draw.choices(ranked, cum_weights=weights, k=count):
        wording: Wording = draw.choices(names, shares)[0]
        if wording == "near miss" and base.number not in near:
            wording = "original"
        if wording == "paraphrase" and len(base.wordings) < 2:
            wording = "case and punctuation"
        match wording:
            case "near miss":
                other = draw.choice(near[base.number])
                trace.append(Asking(other, other.wordings[0], wording))
            case "paraphrase":
                trace.append(Asking(base, draw.choice(base.wordings[1:]), wording))
            case "case and punctuation":
                trace.append(Asking(base, restyled(base.wordings[0], draw), wording))
            case _:
                trace.append(Asking(base, base.wordings[0], wording))
    return trace


def restyled(question: str, draw: random.Random) -> str:
    """Return the same words in another case, with other end punctuation or other spaces."""
    bare = question.rstrip("?")
    return draw.choice((question.lower(), bare, f"{question}?", f" {bare.lower()} ", question.upper(), f"{bare} ??"))


def repeat_share(trace: Sequence[Asking]) -> float:
    """Return the share of questions whose base question was asked before."""
    return 1 - len({asking.base.number for asking in trace}) / len(trace)
