"""What is published: one small JSON object per shard, and a snapshot of all of them that is refreshed at most so often.

With them comes what the company index holds of those shards. The pipeline writes these objects (by conditional put);
serving reads only what they name. Everything in them is checked when read: an object that does not validate is left out
of the snapshot and named in `Snapshot.broken`.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from difflib import get_close_matches
from fnmatch import fnmatchcase
from threading import Lock

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rag_serving.company import RECORDS, CompanyRecord, read_record
from rag_serving.errors import InvalidArgument, InvalidShardName, LakeCorrupt, UnknownScope
from rag_serving.objects import Objects
from rag_serving.results import ShardInfo
from rag_serving.shards import Shard, check_names, same_name

CATALOG = "catalog"
HISTORY_LENGTH = 50


class Publication(BaseModel):
    """One published version of a shard's table."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = Field(ge=1, description="version of the Lance table")
    content_digest: str = Field(min_length=8, description="changes exactly when the chunks or their vectors' model do")
    source_digest: str = Field(description="the listing (keys, etags, sizes) that this version was made from")
    fingerprint: str = Field(min_length=8, description="embedder of the vectors")
    documents: int = Field(ge=0)
    chunks: int = Field(ge=0)
    quarantined: int = Field(ge=0)
    published_at: datetime
    run_id: str = Field(description="Dagster run that built it")
    published_by: str = Field("", description="who made it current: a run, or the person who rolled back to it")
    table_format: int = Field(1, ge=1, description="version of the table's schema, see `tables.TABLE_FORMAT`")


class Hold(BaseModel):
    """Why a shard stays at its version: runs go on building, publishing waits for the release."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    by: str
    since: datetime
    built_source_digest: str = Field("", description="the listing that the newest unpublished version was made from")


class CatalogEntry(BaseModel):
    """The catalog object of one shard: what serving reads now, and what it read before."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = Field(1, ge=1, le=1)
    region: str
    department: str
    table: str
    epoch: int = Field(ge=0, description="lease epoch of the writer that published")
    current: Publication
    history: tuple[Publication, ...] = Field((), max_length=HISTORY_LENGTH, description="newest first, without current")
    hold: Hold | None = None

    @property
    def shard(self) -> Shard:
        return Shard(self.region, self.department)

    @property
    def info(self) -> ShardInfo:
        """What clients are told of it."""
        current = self.current
        return ShardInfo(
            region=self.region,
            department=self.department,
            documents=current.documents,
            chunks=current.chunks,
            quarantined=current.quarantined,
            version=current.version,
            published_at=current.published_at,
        )

    @property
    def seen_source_digest(self) -> str:
        """The listing that the pipeline has worked through: of what is published, or of what a hold keeps back."""
        return (self.hold.built_source_digest if self.hold is not None else "") or self.current.source_digest

    def to_json(self) -> bytes:
        return self.model_dump_json(indent=1).encode()


def catalog_key(shard: Shard) -> str:
    """Key of a shard's catalog object."""
    return f"{CATALOG}/{shard.table_name}.json"


def pattern_halves(pattern: str) -> tuple[str, str]:
    """A pattern of shards as one of regions and one of departments; raises `InvalidArgument`. Case matters."""
    region, slash, department = unicodedata.normalize("NFC", pattern).partition("/")
    if not slash or not region or not department or "/" in department:
        raise InvalidArgument(f"a pattern of shards is written region/department, as in oslo/*, not {pattern[:80]!r}")
    return region, department


def _shard_of(key: str) -> Shard | None:
    """The shard of a catalog object; None for an object that no pipeline wrote."""
    try:
        return Shard.from_table_name(_table_of(key))
    except InvalidShardName:
        return None


def _table_of(key: str) -> str:
    return key.removeprefix(f"{CATALOG}/").removesuffix(".json")


def read_entry(shard: Shard, data: bytes) -> CatalogEntry:
    """Validate a catalog object; raises `LakeCorrupt`."""
    try:
        entry = CatalogEntry.model_validate_json(data)
        if entry.shard != shard or entry.table != shard.table_name:
            raise LakeCorrupt(f"the catalog object of {shard} speaks of {entry.table!r}; publish the shard again")
    except (ValidationError, InvalidShardName) as error:
        raise LakeCorrupt(f"the catalog object of {shard} is malformed ({_brief(error)}); publish it again") from error
    return entry


def _brief(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return str(error)


@dataclass(frozen=True)
class Snapshot:
    """All published shards as of one moment; immutable, so that one question sees one state."""

    entries: dict[Shard, CatalogEntry]
    broken: dict[str, str] = field(default_factory=dict[str, str])
    companies: dict[str, CompanyRecord] = field(default_factory=dict[str, CompanyRecord])
    """What the company index holds, by fingerprint."""

    def within(self, patterns: Iterable[str] | None) -> Snapshot:
        """Only the shards that a pattern names (``oslo/*``; a wild card stays within its half); None for all of them.

        What a caller may not see is then unknown, like what does not exist. Raises `InvalidArgument` for a pattern
        without exactly one slash.
        """
        if patterns is None:
            return self
        halves = [pattern_halves(pattern) for pattern in patterns]

        def seen(shard: Shard) -> bool:
            region, department = (unicodedata.normalize("NFC", name) for name in (shard.region, shard.department))
            return any(fnmatchcase(region, left) and fnmatchcase(department, right) for left, right in halves)

        return Snapshot(
            {shard: entry for shard, entry in self.entries.items() if seen(shard)},
            {key: problem for key, problem in self.broken.items() if (shard := _shard_of(key)) and seen(shard)},
            self.companies,
        )

    def route(self, regions: Iterable[str] | None, departments: Iterable[str] | None) -> list[CatalogEntry]:
        """The published shards in those regions and departments (None: all), sorted by key.

        Raises `InvalidShardName`, `InvalidArgument` for an empty list or a bare string, and `UnknownScope` when a name
        matches nothing or nothing is left.
        """
        chosen_regions = self._known("region", regions, {shard.region for shard in self.entries})
        chosen_departments = self._known("department", departments, {shard.department for shard in self.entries})
        routed = [
            self.entries[shard]
            for shard in sorted(self.entries)
            if (chosen_regions is None or shard.region in chosen_regions)
            and (chosen_departments is None or shard.department in chosen_departments)
        ]
        if not routed:
            if not self.entries:
                raise UnknownScope("nothing is published yet; index something first (rag-assets backfill --all)")
            raise UnknownScope(
                "no published shard lies in those regions and departments together; see rag-serving shards"
            )
        return routed

    def broken_in(self, regions: Iterable[str] | None, departments: Iterable[str] | None) -> tuple[str, ...]:
        """Marks for the shards of that scope whose catalog object does not validate, so that none is missed unseen."""
        marks: list[str] = []
        for key in sorted(self.broken):
            shard = _shard_of(key)
            if shard is None:
                continue
            in_region = regions is None or any(same_name(shard.region, name) for name in regions)
            if in_region and (departments is None or any(same_name(shard.department, name) for name in departments)):
                marks.append(f"catalog_broken:{shard}")
        return tuple(marks)

    @staticmethod
    def _known(kind: str, names: Iterable[str] | None, known: set[str]) -> set[str] | None:
        checked = check_names(kind, names)
        if checked is None:
            return None
        chosen: set[str] = set()
        for name in checked:
            matching = {candidate for candidate in known if same_name(candidate, name)}
            if not matching:
                close = get_close_matches(name, known, n=3)
                hint = f"; did you mean {', '.join(close)}?" if close else "; see rag-serving shards"
                raise UnknownScope(f"no published shard has the {kind} {name!r}{hint}")
            chosen |= matching
        return chosen


class Catalog:
    """Reads the catalog objects; fetches again only those whose etag changed. Safe between threads."""

    def __init__(
        self, objects: Objects, *, refresh_seconds: float = 2.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._objects = objects
        self._refresh = refresh_seconds
        self._clock = clock
        self._lock = Lock()
        self._read: dict[str, tuple[str, CatalogEntry | CompanyRecord | str]] = {}
        self._snapshot: Snapshot | None = None
        self._taken = 0.0

    def cached(self) -> Snapshot | None:
        """The last snapshot while it is fresh, else None."""
        if self._snapshot is not None and self._clock() - self._taken < self._refresh:
            return self._snapshot
        return None

    def snapshot(self) -> Snapshot:
        """The published state, at most `refresh_seconds` old; raises `LakeUnavailable`."""
        with self._lock:
            return self.cached() or self._refreshed()

    def _refreshed(self) -> Snapshot:
        taken = self._clock()
        # The records first: what they hold and the catalog no longer names is merely left out.
        listed = [*self._objects.list(RECORDS), *self._objects.list(CATALOG)]
        listing = {entry.key: entry.etag for entry in listed if entry.key.endswith(".json")}
        changed = [key for key, etag in listing.items() if key not in self._read or self._read[key][0] != etag]
        kept = {key: value for key, value in self._read.items() if key in listing}
        if changed:
            with ThreadPoolExecutor(max_workers=min(16, len(changed))) as pool:
                kept.update((key, value) for key, value in pool.map(self._fetch, changed) if value is not None)
        unchanged = self._snapshot is not None and not changed and kept.keys() == self._read.keys()
        self._read = kept
        self._taken = taken
        if not unchanged or self._snapshot is None:
            values = [value for _, value in kept.values()]
            broken = {key: value for key, (_, value) in kept.items() if isinstance(value, str)}
            self._snapshot = Snapshot(
                {value.shard: value for value in values if isinstance(value, CatalogEntry)},
                broken,
                {value.fingerprint: value for value in values if isinstance(value, CompanyRecord)},
            )
        return self._snapshot

    def _fetch(self, key: str) -> tuple[str, tuple[str, CatalogEntry | CompanyRecord | str] | None]:
        stored = self._objects.get(key)
        if stored is None:
            return key, None
        try:
            if key.startswith(f"{RECORDS}/"):
                fingerprint = key.removeprefix(f"{RECORDS}/").removesuffix(".json")
                return key, (stored.etag, read_record(fingerprint, stored.data))
            shard = Shard.from_table_name(_table_of(key))
            return key, (stored.etag, read_entry(shard, stored.data))
        except (LakeCorrupt, InvalidShardName) as error:
            return key, (stored.etag, str(error))


def read_catalog_entry(objects: Objects, shard: Shard) -> tuple[CatalogEntry, str] | None:
    """One shard's entry and its etag, straight from the lake; None before its first publish."""
    stored = objects.get(catalog_key(shard))
    return None if stored is None else (read_entry(shard, stored.data), stored.etag)
