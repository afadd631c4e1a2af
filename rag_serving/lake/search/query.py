"""A query of the tables: mode, depth and filters of a search."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from rag_serving.lake.search.parameters import CAPPED_DEPTH, DEPTH
from rag_serving.lake.sql import sql_before, sql_from, sql_starts_with

Mode = Literal["hybrid", "vector", "text"]


@dataclass(frozen=True, slots=True)
class Query:
    """A query of the tables. `question` is for full-text search; its vectors are passed separately."""

    question: str
    k: int
    mode: Mode = "hybrid"
    path_prefix: str | None = None
    modified_from: datetime | None = None
    modified_before: datetime | None = None
    join_neighbours: bool = False
    per_document: int | None = None
    """Most passages of a document; None for any number."""
    deepening: int = 1
    """Times as many rows to read as usual."""

    @property
    def depth(self) -> int:
        """Number of rows to read from each ranking."""
        return max(DEPTH, 2 * self.k) * (1 if self.per_document is None else CAPPED_DEPTH) * self.deepening

    @property
    def filters(self) -> tuple[str, ...]:
        """SQL conditions that a row must meet."""
        conditions: list[str] = []
        if self.path_prefix:
            conditions.append(sql_starts_with("path", self.path_prefix))
        if self.modified_from is not None:
            conditions.append(sql_from("modified_at", self.modified_from))
        if self.modified_before is not None:
            conditions.append(sql_before("modified_at", self.modified_before))
        return tuple(conditions)

    @property
    def by_date(self) -> bool:
        """Whether the query filters by modification date."""
        return self.modified_from is not None or self.modified_before is not None
