"""How many passages have a word, so that full-text scores of different tables can be compared.

BM25 weighs a word by its rarity in the searched table: a word that is common in the company would count most in the one
shard that hardly has it. Rankings of several tables are therefore scored again, with the statistics of the company
index. The formula and its constants are those of Lance (Robertson and Zaragoza, Foundations and Trends 2009).
"""

import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Self, cast
from zlib import crc32

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rag_serving.errors import LakeCorrupt

STATISTICS = "company_words"
"""Folder of the lake with the statistics of each company table, named by fingerprint."""
_K1 = 1.2
_B = 0.75


class WordStatistics:
    """Number of passages by word, and their mean length in words. A word is stored as its hash."""

    def __init__(self, rows: int, words: int, hashes: npt.NDArray[np.uint32], counts: npt.NDArray[np.uint32]) -> None:
        self.rows = rows
        self.mean_length = words / max(rows, 1)
        self._words = words
        self._hashes = hashes
        self._counts = counts

    @classmethod
    def of(cls, batches: Iterable[pa.RecordBatch]) -> Self:
        """Count the words in batches of rows with the column `words`."""
        rows = words = 0
        found = [np.empty(0, np.uint32)]
        times = [np.empty(0, np.uint32)]
        for batch in batches:
            split = cast("Any", pc).split_pattern(cast("Any", batch).column("words"), " ")
            encoded = split.flatten().dictionary_encode()
            vocabulary: list[str] = encoded.dictionary.to_pylist()
            # A word counts once for each passage.
            pairs = split.value_parent_indices().to_numpy().astype(np.int64) * len(vocabulary)
            distinct = np.unique(pairs + encoded.indices.to_numpy())
            times.append(np.bincount(distinct % max(len(vocabulary), 1), minlength=len(vocabulary)).astype(np.uint32))
            found.append(np.array([crc32(word.encode()) for word in vocabulary], np.uint32))
            rows += batch.num_rows
            words += len(encoded)
        hashes, places = np.unique(np.concatenate(found), return_inverse=True)
        counts = np.bincount(places, weights=np.concatenate(times), minlength=len(hashes))
        return cls(rows, words, hashes, counts.astype(np.uint32))

    def to_bytes(self) -> bytes:
        """Serialize; `from_bytes` is the inverse."""
        out = io.BytesIO()
        totals = np.array([self.rows, self._words])
        np.savez_compressed(out, totals=totals, hashes=self._hashes, counts=self._counts)
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse; raises `LakeCorrupt`."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as read:
                rows, words = (int(total) for total in read["totals"])
                hashes, counts = read["hashes"].astype(np.uint32), read["counts"].astype(np.uint32)
                if rows < 0 or words < 0 or hashes.ndim != 1 or hashes.shape != counts.shape:
                    raise ValueError("unexpected shapes")
        except Exception as error:  # those of numpy, zipfile and zlib have no common base class
            raise LakeCorrupt("the word statistics of the company index are malformed; materialize it again") from error
        return cls(rows, words, hashes, counts)

    def weight(self, word: str) -> float:
        """Return the inverse document frequency of a word."""
        hashed = np.uint32(crc32(word.encode()))
        place = int(self._hashes.searchsorted(hashed))
        known = place < len(self._hashes) and self._hashes[place] == hashed
        count = int(self._counts[place]) if known else 0
        return math.log(1 + (max(self.rows, count) - count + 0.5) / (count + 0.5))

    def scores(self, asked: Sequence[str], passages: Sequence[str]) -> list[float]:
        """Return the BM25 score of each passage, given as its stored words."""
        weights = {word: self.weight(word) for word in asked}
        scores: list[float] = []
        for passage in passages:
            words = passage.split(" ")
            length = _K1 * (1 - _B + _B * len(words) / max(self.mean_length, 1.0))
            counted = Counter(word for word in words if word in weights)
            scores.append(sum(weights[word] * (_K1 + 1) * times / (times + length) for word, times in counted.items()))
        return scores
