"""The record of a cache decision: the retrieved passages, and the name of the guard that refused.

Plain data for other modules to store and send. `evidence` builds it from hits and tests it for equality;
`guards.judge` compares the evidence of two questions.
"""

from dataclasses import dataclass
from typing import Literal

Guard = Literal[
    "dates", "codes", "numbers", "units", "names", "scope", "negation", "kind", "order", "wording", "language",
    "similarity", "evidence",
]  # fmt: skip
"""What refused a hit: the last two are decided by the judge, the others by a rule."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """A passage retrieved for a question."""

    chunk_id: str
    content_hash: str
    score: float | None = None
    cited: bool = False
    """Whether the answer cites it; known only for cached questions."""
