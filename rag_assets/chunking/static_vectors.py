"""Vectors of sentences, summed from static vectors of tokens, which `models.static_vectors` distils."""

from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

TOKENS_PER_GROUP: Final = 8192
"""Tokens whose vectors are gathered at once: 8 MB fit into the CPU's caches."""


class StaticVectors:
    """One weighted vector per token of a vocabulary; the cosine of their sums compares texts."""

    def __init__(self, matrix: npt.NDArray[np.float16], sha256: str) -> None:
        self.matrix = matrix
        """Shape ``(tokens, dimensions)``."""
        self.version = sha256[:8]
        """A part of the chunker's version, because the vectors determine the cuts."""

    @cached_property
    def _rows(self) -> npt.NDArray[np.float32]:
        # The last row is for tokens that were added to the vocabulary later.
        return np.vstack([self.matrix.astype(np.float32), np.zeros((1, self.matrix.shape[1]), np.float32)])

    def units(self, ids: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return unit vectors, shape ``(len(starts), dimensions)``, of the spans of `ids` that begin at `starts`.

        The vector of a span without tokens, or without any that has a vector, is zero.
        """
        rows = self._rows
        known = np.minimum(ids, len(rows) - 1)
        ends = np.append(starts[1:], len(ids))
        sums = np.zeros((len(starts), rows.shape[1]), np.float32)
        filled = np.flatnonzero(ends > starts)
        first = 0
        while first < len(filled):
            begin = int(starts[filled[first]])
            last = int(np.searchsorted(ends[filled], begin + TOKENS_PER_GROUP, side="right"))
            last = max(last, first + 1)
            group = filled[first:last]
            gathered = rows[known[begin : int(ends[group[-1]])]]
            sums[group] = np.add.reduceat(gathered, starts[group] - begin, axis=0)
            first = last
        norms = np.sqrt(np.einsum("ij,ij->i", sums, sums))
        sums /= np.where(norms > 0, norms, 1)[:, None]
        return sums
