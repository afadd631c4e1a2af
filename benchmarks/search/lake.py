"""Build a lake like the pipeline does: tables, indexes, published versions and the company index.

The pipeline's functions write the rows, under leases. Only parsing, chunking and embedding are skipped, because the
passages and vectors already exist.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from benchmarks.search.passages import Corpus, widened

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from rag_assets.storage.lake import Lake
    from rag_assets.storage.shard_writer import ShardWriter
    from rag_serving.lake.catalog import Snapshot
    from rag_serving.lake.embedders.base import EmbedderIdentity
    from rag_serving.lake.shards import Shard

REGIONS = 10
_ROWS_OF_A_COMMIT = 4096
_FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)
_PIN_SECONDS = 3600.0


def shard_of(number: int) -> Shard:
    """Return the shard with this number; shards are spread over a few regions."""
    from rag_serving.lake.shards import Shard

    return Shard(f"region{number % REGIONS}", f"department{number // REGIONS:03}")


@dataclass(frozen=True, slots=True)
class Builder:
    """Builds shards from the corpus; shard `number` contains `shard_rows` rows from ``number * shard_rows`` on."""

    lake: Lake
    identity: EmbedderIdentity
    corpus: Corpus
    shard_rows: int
    vector_index_rows: int

    def rows_of(self, number: int) -> range:
        """Return the rows of the corpus in this shard."""
        return range(number * self.shard_rows, min((number + 1) * self.shard_rows, len(self.corpus)))

    def table(self, rows: Sequence[int], shard: Shard, doc_ids: Sequence[str] | None = None) -> pa.Table:
        """Return rows of the corpus as rows of the shard's table; `doc_ids` overrides their documents."""
        from rag_assets.stages.embeddings import vector_array
        from rag_assets.storage.schemas import document_id
        from rag_serving.lake.search.words import indexed_words
        from rag_serving.lake.tables import shard_schema

        schema = shard_schema(self.identity.dimensions, self.identity.fingerprint)
        picked = np.asarray(rows, np.int64)
        part = self.corpus.passages.take(pa.array(picked))
        count = len(picked)
        keys = [self.corpus.keys[number] for number in part["document"].to_pylist()]
        arrays: dict[str, Any] = {
            "chunk_id": pa.array(map(chunk_id, rows), pa.string()),
            "doc_id": pa.array(doc_ids or [document_id(key) for key in keys], pa.string()),
            "ordinal": pa.array(picked, pa.int32()),
            "vector": vector_array(widened(self.corpus.vectors[picked], self.identity.dimensions)),
            "source": pa.array([f"s3://documents/{shard.key}/{key}" for key in keys], pa.string()),
            "path": pa.array(keys, pa.string()),
            "type": pa.array(["text/markdown"] * count, pa.string()),
            "title": pa.array([key.rpartition("/")[2] for key in keys], pa.string()),
            "heading_path": pa.array([[]] * count, pa.list_(pa.string())),
            "page": pa.nulls(count, pa.int32()),
            "region": pa.array([shard.region] * count, pa.string()),
            "department": pa.array([shard.department] * count, pa.string()),
            "content_hash": pa.array([hashlib.sha256(key.encode()).hexdigest() for key in keys], pa.string()),
            "etag": pa.array([hashlib.md5(key.encode()).hexdigest() for key in keys], pa.string()),  # noqa: S324
            "modified_at": pa.array(
                [_FIRST_DAY + timedelta(hours=number % 8760) for number in part["document"].to_pylist()],
                pa.timestamp("us", tz="UTC"),
            ),
            "indexed_at": pa.array([datetime.now(UTC)] * count, pa.timestamp("us", tz="UTC")),
            "stale": pa.array([False] * count, pa.bool_()),
        }
        arrays |= {name: part[name].combine_chunks() for name in ("text", "start", "end", "tokens")}
        names = zip(keys, arrays["text"].to_pylist(), strict=True)
        arrays["words"] = pa.array(
            [indexed_words([key.rpartition("/")[2], text], "en") for key, text in names], pa.string()
        )
        arrays["table_header"] = pa.array([""] * count, pa.string())
        arrays["language"] = pa.array(["en"] * count, pa.string())
        return pa.Table.from_arrays([arrays[name] for name in schema.names], schema=schema)

    @contextmanager
    def writer(self, shard: Shard) -> Generator[ShardWriter]:
        """Open the shard for writing, as a run does."""
        from rag_assets.storage.lease import acquire_lease
        from rag_assets.storage.shard_writer import ShardWriter

        with acquire_lease(self.lake.objects, shard, "benchmark", seconds=600) as lease:
            yield ShardWriter(self.lake, shard, lease)

    def build(self, numbers: Sequence[int]) -> None:
        """Write, index and publish these shards, except those already published."""
        from rag_serving.lake.catalog_entry import read_catalog_entry

        for done, number in enumerate(numbers, start=1):
            shard = shard_of(number)
            if read_catalog_entry(self.lake.objects, shard) is None:
                self._fill(shard, self.rows_of(number))
            if done % 10 == 0 or done == len(numbers):
                say(f"{done} of {len(numbers)} shards")

    def _fill(self, shard: Shard, rows: Sequence[int]) -> None:
        from rag_assets.storage.search_indexes import keep_indexes
        from rag_serving.lake.tables import SHARDS, shard_schema

        with self.writer(shard) as writer:
            table = writer.ensure(SHARDS, shard_schema(self.identity.dimensions, self.identity.fingerprint))
            for at in range(0, len(rows), _ROWS_OF_A_COMMIT):
                writer.append(SHARDS, self.table(rows[at : at + _ROWS_OF_A_COMMIT], shard))
            keep_indexes(writer, table, table.count_rows(), self.vector_index_rows)
            self.publish(writer)

    def publish(self, writer: ShardWriter) -> None:
        """Publish the head of the shard's table."""
        from rag_serving.lake.catalog_entry import CatalogEntry, Publication, catalog_key
        from rag_serving.lake.tables import SHARDS, TABLE_FORMAT

        table = writer.table(SHARDS)
        assert table is not None
        publication = Publication(
            version=table.version,
            content_digest=f"{table.version:08}",
            source_digest="benchmark",
            fingerprint=self.identity.fingerprint,
            documents=0,
            chunks=table.count_rows(),
            quarantined=0,
            published_at=datetime.now(UTC),
            run_id="benchmark",
            table_format=TABLE_FORMAT,
            languages={"en": table.count_rows()},
        )
        shard = writer.shard
        entry = CatalogEntry(
            format=1,
            region=shard.region,
            department=shard.department,
            table=shard.table_name,
            epoch=writer.lease.epoch,
            current=publication,
        )
        self.lake.objects.put(catalog_key(shard), entry.to_json())

    def snapshot(self, shards: int) -> Snapshot:
        """Return the published versions of the first `shards` shards, with the company index if there is one."""
        from rag_serving.lake.catalog import Catalog, Snapshot

        whole = Catalog(self.lake.objects).snapshot()
        kept = {shard_of(number) for number in range(shards)}
        return Snapshot({s: e for s, e in whole.entries.items() if s in kept}, companies=whole.companies)

    def company(self, shards: int, *, rebuild: bool) -> None:
        """Update the company index to the first `shards` shards; with `rebuild`, from scratch."""
        from rag_assets.stages.company_index import CompanyTable, acquire_company_index, sync_company_index
        from rag_serving.lake.company_index import COMPANY, record_key

        fingerprint = self.identity.fingerprint
        if rebuild:
            self.lake.objects.delete(record_key(fingerprint))
            self.lake.drop(COMPANY, CompanyTable(fingerprint))
        with acquire_company_index(self.lake, "benchmark", seconds=3600, wait=60) as lease:
            sync_company_index(
                self.lake,
                lease,
                self.snapshot(shards),
                vector_index_rows=self.vector_index_rows,
                pin_seconds=_PIN_SECONDS,
                log=say,
            )


@dataclass(frozen=True, slots=True)
class Upserts:
    """Small changes to one shard: groups of at least `rows` rows get other text with the same number of passages."""

    builder: Builder
    number: int
    reserve: range
    """Rows of the corpus that are not in any shard."""
    rows: int = 10

    def apply(self, count: int, seen: Callable[[int], None]) -> npt.NDArray[np.int64]:
        """Make `count` upserts, each followed by a run's index update and a call of `seen`; publish after the last.

        Returns the rows of the corpus in the shard afterwards.
        """
        from rag_assets.storage.search_indexes import keep_indexes
        from rag_serving.lake.tables import SHARDS

        builder, shard = self.builder, shard_of(self.number)
        held = np.array(builder.rows_of(self.number), np.int64)
        fresh = iter(self.reserve)
        with builder.writer(shard) as writer:
            for done, (first, behind) in enumerate(self._groups(held, count), start=1):
                old = builder.table(held[first:behind].tolist(), shard)
                held[first:behind] = [next(fresh) for _ in range(behind - first)]
                owners: list[str] = old["doc_id"].to_pylist()
                new = builder.table(held[first:behind].tolist(), shard, owners)
                writer.replace(SHARDS, new, key="chunk_id", owner="doc_id", owners=sorted(set(owners)))
                table = writer.table(SHARDS)
                assert table is not None
                keep_indexes(writer, table, table.count_rows(), builder.vector_index_rows)
                if done == count:
                    builder.publish(writer)
                seen(done)
            assert table.count_rows() == len(held), "an upsert replaced the wrong rows"
        return held

    def _groups(self, held: npt.NDArray[np.int64], count: int) -> Iterator[tuple[int, int]]:
        """Yield ranges ``[first, behind)`` of whole documents, spread over the shard.

        Documents at either end of the shard, or in several pieces, are skipped, because they may have more rows.
        """
        documents: list[int] = self.builder.corpus.passages["document"].take(pa.array(held)).to_pylist()
        heads = [number for number, _ in groupby(documents)]
        often = {number for number, pieces in Counter(heads).items() if pieces > 1} | {heads[0], heads[-1]}
        groups: list[tuple[int, int]] = []
        first = 0
        for at in range(1, len(documents)):
            if documents[at] == documents[at - 1]:
                continue
            if any(number in often for number in documents[first:at]):
                first = at
            elif at - first >= self.rows:
                if at - first <= 4 * self.rows:
                    groups.append((first, at))
                first = at
        if len(groups) < count:
            raise ValueError(f"the shard has {len(groups)} groups of documents, but {count} upserts are needed")
        yield from groups[:: len(groups) // count][:count]

    def upkeep(self) -> None:
        """Run the scheduled maintenance and publish."""
        from rag_assets.publishing.maintenance import MaintenanceReport, maintain_shard
        from rag_assets.publishing.retention import Retention

        with self.builder.writer(shard_of(self.number)) as writer:
            maintain_shard(
                writer,
                self.builder.identity,
                Retention(5, timedelta(seconds=_PIN_SECONDS)),
                MaintenanceReport(),
                run_id="benchmark",
            )
            self.builder.publish(writer)


def chunk_id(row: int) -> str:
    """Return the chunk id of a row of the corpus: a hash, like all chunk ids, that ends with the row."""
    return f"{hashlib.sha256(str(row).encode()).hexdigest()[:24]}{row:08x}"


def row_of(chunk: str) -> int:
    """Return the row of a chunk id; the inverse of `chunk_id`."""
    return int(chunk[-8:], 16)


def say(message: str) -> None:
    """Print progress to standard error."""
    print(message, file=sys.stderr, flush=True)
