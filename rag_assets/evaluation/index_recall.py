"""How many of the true nearest rows a search by a table's vector index finds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from rag_assets.storage.lake import scan
from rag_serving.lake.search.parameters import PROBES, REFINE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from lancedb.table import Table

    Vector = npt.NDArray[np.float32]

CUTOFF = 10
"""Nearest rows that count, and passages of a ranking."""
_QUERIES = 32
_FEWEST_QUERIES = 4
_COMPARED = 2_000_000
"""Vectors that a measurement compares at most: a few seconds' work, so that large tables get fewer queries."""
_DRIFT = 0.02
"""Share of an index's rows that may change before it is measured again."""
_TIE = 1e-6
"""Distances no further apart are equal: of passages that are there twice, an index may find either."""


@dataclass(frozen=True, slots=True)
class MeasuredIndex:
    """What a search by a vector index finds, and which index it was."""

    index: str
    """Empty where there is none, and every vector is compared."""
    recall: float | None
    """Share of the true ten nearest that is found; None where the table has no rows."""


def index_recall(table: Table, vectors: Sequence[Vector], earlier: Iterable[MeasuredIndex]) -> MeasuredIndex:
    """Recall of the table's vector index for those queries and vectors of its own; without one none is missed.

    What was measured earlier holds as long as the index has the same segments and covers nearly the same rows: a
    changed document or two are not worth comparing every vector of a large shard.
    """
    rows = table.count_rows()
    found = [index for index in table.list_indices() if index.columns == ["vector"]]
    if not found or not rows:
        return MeasuredIndex("", 1.0 if rows else None)
    index = f"{found[0].index_uuid}:{found[0].num_segments}:{found[0].num_indexed_rows}"
    for measured in earlier:
        if measured.recall is not None and _nearly(measured.index, index):
            return measured  # named by what was measured, so that small changes add up
    count = max(_FEWEST_QUERIES, min(_QUERIES, _COMPARED // rows))
    queries = [*vectors[:count], *_own_vectors(table, rows, max(0, count - len(vectors)))]
    found_of = zip(queries, _furthest(table, queries), strict=True)
    return MeasuredIndex(index, sum(_recall(table, vector, furthest) for vector, furthest in found_of) / len(queries))


def nearest(table: Table, vector: Vector) -> Any:
    """LanceDB's query for the rows nearest to the vector by cosine, with as many probes as serving has."""
    query: Any = table.search(vector, vector_column_name="vector", query_type="vector")
    return query.distance_type("cosine").nprobes(PROBES).refine_factor(REFINE)


def _nearly(left: str, right: str) -> bool:
    """Whether both name the same index but for a small share of its rows."""
    (one, _, some), (other, _, more) = left.rpartition(":"), right.rpartition(":")
    if one != other or not some.isdecimal() or not more.isdecimal():
        return False
    return abs(int(some) - int(more)) <= _DRIFT * int(some)


def _own_vectors(table: Table, rows: int, count: int) -> list[Vector]:
    """Vectors of the table itself, spread over it: the same of the same version."""
    import numpy as np

    count = min(count, rows)
    if not count:
        return []
    taken: Any = table.take_offsets([rows * number // count for number in range(count)]).select(["vector"]).to_arrow()
    return [np.asarray(vector, dtype=np.float32) for vector in taken["vector"].to_pylist()]


def _furthest(table: Table, queries: Sequence[Vector]) -> list[float]:
    """Cosine distance of the last of each query's `CUTOFF` nearest rows.

    Compares every vector, in one pass for all queries: a query of the engine for each reads the table as often, and
    much of it at once.
    """
    import numpy as np

    def unit(matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), np.float32(1e-12))

    asked = unit(np.vstack(queries))
    closest = np.full((len(queries), CUTOFF), np.inf, np.float32)
    for batch in scan(table, ["vector"]):
        column = cast("Any", batch).column("vector")
        rows = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
        together = np.hstack([closest, 1 - asked @ unit(rows).T])
        closest = np.partition(together, CUTOFF - 1, axis=1)[:, :CUTOFF]
    return [float(distances[np.isfinite(distances)].max()) for distances in closest]


def _recall(table: Table, vector: Vector, furthest: float) -> float:
    """The share of the nearest rows, the last of which is so far, that the vector index finds."""
    found = nearest(table, vector).limit(CUTOFF).select(["_distance"]).to_list()
    return sum(row["_distance"] <= furthest + _TIE for row in found) / min(CUTOFF, table.count_rows())
