"""Who asks what when: draws of base questions by Zipf's law, and how each is worded."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from benchmarks.trace.questions import Base, Questions

Wording = Literal["as first asked", "case and marks", "reworded", "near miss"]
SHARES: dict[Wording, float] = {"as first asked": 0.4, "case and marks": 0.2, "reworded": 0.3, "near miss": 0.1}
"""How the questions are worded, where a base question has such a wording."""


@dataclass(frozen=True, slots=True)
class Asking:
    """One question of the trace."""

    base: Base
    text: str
    wording: Wording


def drawn(questions: Questions, count: int, exponent: float, seed: int) -> list[Asking]:
    """So many questions; the base question of rank r is drawn in proportion to r to the power of minus `exponent`."""
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
            wording = "as first asked"
        if wording == "reworded" and len(base.wordings) < 2:
            wording = "case and marks"
        match wording:
            case "near miss":
                other = draw.choice(near[base.number])
                trace.append(Asking(other, other.wordings[0], wording))
            case "reworded":
                trace.append(Asking(base, draw.choice(base.wordings[1:]), wording))
            case "case and marks":
                trace.append(Asking(base, restyled(base.wordings[0], draw), wording))
            case _:
                trace.append(Asking(base, base.wordings[0], wording))
    return trace


def restyled(question: str, draw: random.Random) -> str:
    """The same words in another case, with other marks at the end or other spaces."""
    bare = question.rstrip("?")
    return draw.choice((question.lower(), bare, f"{question}?", f" {bare.lower()} ", question.upper(), f"{bare} ??"))


def repeat_share(trace: Sequence[Asking]) -> float:
    """The share of questions whose base question was asked before."""
    return 1 - len({asking.base.number for asking in trace}) / len(trace)
