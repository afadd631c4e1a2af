"""A bench with one test's own shard, and a source that records its requests."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import dagster as dg
import pytest

from rag_assets.pipeline import Pipeline
from rag_assets.settings import PipelineSettings
from rag_assets.sources.base import FetchedObject, ObjectGone, ObjectUnreadable, Source, SourceObject
from rag_serving.lake.shards import Shard
from tests.pipelines import failure_of, lake_state, metadata_of, published_rows, run_shard, settings_for
from tests.servers.roots import SourceRoot


@dataclass(frozen=True)
class Bench:
    """A source, a lake, an instance, and this test's own shard."""

    source: SourceRoot
    lake: str
    shard: str
    instance: dg.DagsterInstance

    @property
    def settings(self) -> PipelineSettings:
        return settings_for(self.source.uri, self.lake)

    def put(self, name: str, text: str | bytes) -> None:
        self.source.put(f"{self.shard}/{name}", text.encode() if isinstance(text, str) else text)

    def delete(self, name: str) -> None:
        self.source.delete(f"{self.shard}/{name}")

    def attempt(
        self, pipeline: Pipeline | None = None, tags: dict[str, str] | None = None, **overrides: object
    ) -> dg.ExecuteInProcessResult:
        settings = settings_for(self.source.uri, self.lake, **overrides)
        return run_shard(self.instance, settings, self.shard, tags, pipeline)

    def run(
        self,
        pipeline: Pipeline | None = None,
        tags: dict[str, str] | None = None,
        keys: Sequence[str] = (),
    ) -> dict[str, dict[str, Any]]:
        """Run the shard successfully and return its assets' metadata. `keys` are names within the shard."""
        named = [f"{self.shard}/{name}" for name in keys]
        result = run_shard(self.instance, self.settings, self.shard, tags, pipeline, keys=named)
        assert result.success, failure_of(result)
        return metadata_of(result)

    def texts(self) -> dict[str, str]:
        """Return what readers see: the text of each document's chunks, by document name."""
        found: dict[str, str] = {}
        for row in published_rows(self.lake, self.shard):
            name = row["source"].rpartition("/")[2]
            found[name] = found.get(name, "") + row["text"]
        return found

    def state(self) -> dict[str, object]:
        return lake_state(self.lake, self.shard)


def new_shard() -> str:
    return f"Lisbon/{uuid.uuid4().hex[:12]}"


on_folders = pytest.mark.parametrize("bench", ["folder"], indirect=True)


class WatchedSource:
    """A source that records its requests and can fail for some objects."""

    def __init__(self, source: Source, watched: type[WatchedPipeline]) -> None:
        self._source = source
        self._watched = watched

    def pages(self, prefix: str = "", *, start_after: str = "") -> Iterator[list[SourceObject]]:
        self._watched.listed.append(prefix)
        yield from self._source.pages(prefix, start_after=start_after)
        if self._watched.after_listing is not None:
            self._watched.after_listing()

    def head(self, key: str) -> SourceObject | None:
        self._watched.headed.append(key)
        return self._source.head(key)

    def fetch(self, key: str) -> FetchedObject:
        self._watched.fetched.append(key)
        name = key.rpartition("/")[2]
        if name in self._watched.unreadable:
            raise ObjectUnreadable(f"{key}: AccessDenied")
        if name in self._watched.vanished:
            raise ObjectGone(key)
        return self._source.fetch(key)

    def shards(self) -> Iterator[Shard]:
        yield from self._source.shards()

    def uri(self, key: str) -> str:
        return self._source.uri(key)


class WatchedPipeline(Pipeline):
    """The pipeline with a watched source. The class keeps the records and faults: Dagster copies resources."""

    listed: ClassVar[list[str]]
    headed: ClassVar[list[str]]
    fetched: ClassVar[list[str]]
    unreadable: ClassVar[set[str]]
    vanished: ClassVar[set[str]]
    after_listing: ClassVar[Callable[[], None] | None]

    def source(self) -> Source:
        return WatchedSource(super().source(), type(self))


def watched(bench: Bench) -> tuple[type[WatchedPipeline], WatchedPipeline]:
    class Watched(WatchedPipeline):
        listed: ClassVar[list[str]] = []
        headed: ClassVar[list[str]] = []
        fetched: ClassVar[list[str]] = []
        unreadable: ClassVar[set[str]] = set()
        vanished: ClassVar[set[str]] = set()
        after_listing: ClassVar[Callable[[], None] | None] = None

    return Watched, Watched(bench.settings)  # pyright: ignore[reportReturnType]
