"""Measure how many of the true nearest rows a table's vector index finds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from rag_assets.storage.lake import Table, scan
from rag_serving.lake.search.parameters import PROBES, REFINE

Vector = npt.NDArray[np.float32]

CUTOFF = 10
"""Nearest rows to find, and passages of a ranking."""
_QUERIES = 32
_FEWEST_QUERIES = 4
_COMPARED = 2_000_000
"""Vectors to compare, a few seconds of work; large tables get fewer queries."""
_DRIFT = 0.02
"""Share of an index's rows that may change before it is measured again."""
_TIE = 1e-6
"""Distances that differ by less are equal: an index may find either of two identical passages."""


@dataclass(frozen=True, slots=True)
class MeasuredIndex:
    """The recall of a vector index."""

    index: str
    """Identifies the index and its state; empty if there is none, so that every vector is compared."""
    recall: float | None
    """Share of the true ten nearest rows that is found; None for an empty table."""


def index_recall(table: Table, vectors: Sequence[Vector], earlier: Iterable[MeasuredIndex]) -> MeasuredIndex:
    """Return the recall of the table's vector index for the queries and some of its own vectors.

    An earlier measurement is reused if the index has the same segments and nearly the same rows, because it compares
    every vector.
    """
    rows = table.count_rows()
    found = [index for index in table.list_indices() if index.columns == ["vector"]]
    if not found or not rows:
        return MeasuredIndex("", 1.0 if rows else None)
    index = f"{found[0].index_uuid}:{found[0].num_segments}:{found[0].num_indexed_rows}"
    for measured in earlier:
        if measured.recall is not None and _nearly(measured.index, index):
            return measured  # with the rows at that time, so that small changes add up
    count = max(_FEWEST_QUERIES, min(_QUERIES, _COMPARED // rows))
    queries = [*vectors[:count], *_own_vectors(table, rows, max(0, count - len(vectors)))]
    found_of = zip(queries, _furthest(table, queries), strict=True)
    return MeasuredIndex(index, sum(_recall(table, vector, furthest) for vector, furthest in found_of) / len(queries))


def nearest(table: Table, vector: Vector) -> Any:
    """Return a query for the rows nearest to the vector by cosine, with the probes of serving."""
    query: Any = table.search(vector, vector_column_name="vector", query_type="vector")
    return query.distance_type("cosine").nprobes(PROBES).refine_factor(REFINE)


def _nearly(left: str, right: str) -> bool:
    """Return whether both identify the same index, except for a small share of its rows."""
    (one, _, some), (other, _, more) = left.rpartition(":"), right.rpartition(":")
    if one != other or not some.isdecimal() or not more.isdecimal():
        return False
    return abs(int(some) - int(more)) <= _DRIFT * int(some)


def _own_vectors(table: Table, rows: int, count: int) -> list[Vector]:
    """Return vectors from all over the table, the same for the same version."""
    count = min(count, rows)
    if not count:
        return []
    taken: Any = table.take_offsets([rows * number // count for number in range(count)]).select(["vector"]).to_arrow()
    return [np.asarray(vector, dtype=np.float32) for vector in taken["vector"].to_pylist()]


def _furthest(table: Table, queries: Sequence[Vector]) -> list[float]:
    """Return the cosine distance of the last of each query's `CUTOFF` nearest rows.

    Compares every vector in one pass for all queries, where LanceDB would read the table once per query.
    """

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
    """Return the share of the rows within that distance that the vector index finds."""
    found = nearest(table, vector).limit(CUTOFF).select(["_distance"]).to_list()
    return sum(row["_distance"] <= furthest + _TIE for row in found) / min(CUTOFF, table.count_rows())
