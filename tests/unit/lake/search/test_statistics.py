"""Word statistics: full-text scores that do not depend on the table."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest

from rag_serving.errors import LakeCorrupt
from rag_serving.lake.search.statistics import WordStatistics


def counted(*passages: str) -> WordStatistics:
    return WordStatistics.of(pa.RecordBatch.from_pydict({"words": [passage]}) for passage in passages)


def test_a_word_counts_once_for_each_passage() -> None:
    statistics = counted("leave leave weeks", "leave desk", "pump valve")
    assert statistics.rows == 3
    assert statistics.mean_length == pytest.approx(7 / 3)
    assert statistics.weight("leave") == pytest.approx(math.log(1 + 1.5 / 2.5))
    assert statistics.weight("unknown") == pytest.approx(math.log(1 + 3.5 / 0.5))


def test_batches_of_any_size_give_the_same_statistics() -> None:
    passages = ["leave weeks", "leave desk", "pump valve pump"]
    (batch,) = pa.table({"words": passages}).to_batches()
    together = WordStatistics.of([batch])
    assert together.scores(["leave", "pump"], passages) == counted(*passages).scores(["leave", "pump"], passages)


def test_rarer_words_and_shorter_passages_score_higher() -> None:
    statistics = counted("leave weeks", "leave desk", "leave pump", "valve desk")
    rare, common, long, none = statistics.scores(
        ["valve", "leave"], ["valve desk", "leave desk", "leave desk in a long passage", "desk"]
    )
    assert rare > common > long > none == 0


def test_statistics_survive_the_lake() -> None:
    statistics = counted("leave weeks", "leave desk")
    again = WordStatistics.from_bytes(statistics.to_bytes())
    assert again.scores(["leave", "desk"], ["leave desk"]) == statistics.scores(["leave", "desk"], ["leave desk"])


@pytest.mark.parametrize("data", [b"", b"not a zip", b"PK\x03\x04 cut"])
def test_malformed_statistics_are_named(data: bytes) -> None:
    with pytest.raises(LakeCorrupt, match="word statistics"):
        WordStatistics.from_bytes(data)


def test_no_passage_has_no_words() -> None:
    assert WordStatistics.of([]).scores(["leave"], ["leave"]) == [pytest.approx(math.log(2) * 2.2 / (1 + 1.2 * 1.0))]
