"""What the cache records of a decision: the passages that were retrieved, and the name of the guard that refused.

Plain data that other modules store and send. `evidence` makes it from hits and tests it for equality;
`guards.features` compares that of two questions.
"""

from dataclasses import dataclass
from typing import Literal

Guard = Literal[
    "dates", "codes", "numbers", "units", "names", "negation", "comparison", "scope", "kind", "order",
    "similarity", "evidence", "wording",
]  # fmt: skip
"""What refused a hit. The last three are decided by the judge, the others by a rule."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One passage that was retrieved for a question. A question has a sequence of them, best first."""

    chunk_id: str
    content_hash: str
    score: float | None = None
    cited: bool = False
    """Whether the answer cites it; known only for cached questions."""
