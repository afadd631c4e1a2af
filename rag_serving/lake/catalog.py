"""The catalog: one small JSON object per published shard, and a cached snapshot of all of them.

A snapshot includes the records of the company index. The pipeline writes these objects with conditional writes; serving
reads only the versions they name. Objects that do not validate are left out and listed in `Snapshot.broken`.
"""

import logging
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from threading import Lock
from typing import Self

from rag_serving.errors import InvalidShardName, LakeCorrupt, LakeUnavailable, UnknownScope
from rag_serving.lake.catalog_entry import CATALOG, CatalogEntry, read_entry, shard_of_key, table_of_key
from rag_serving.lake.company_index import RECORDS, CompanyRecord, read_record
from rag_serving.lake.embedders.base import MODELS
from rag_serving.lake.object_store import ObjectStore
from rag_serving.lake.shards import Shard, check_names, pattern_halves, same_name

_THIS_LAKE = "this lake"
_UNREADABLE = ""
"""In place of the etag of an object that could not be fetched, so that it is fetched again."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """All published shards at one moment; immutable, so that each question sees a consistent state."""

    entries: dict[Shard, CatalogEntry]
    broken: dict[str, str] = field(default_factory=dict[str, str])
    companies: dict[str, CompanyRecord] = field(default_factory=dict[str, CompanyRecord])
    """Records of the company index, by fingerprint."""
    lake: str = _THIS_LAKE
    """What messages call the lake."""

    def within(self, patterns: Iterable[str] | None) -> Self:
        """Return the shards that match a pattern such as ``oslo/*`` (None: all); a wildcard matches no slash.

        Other shards are indistinguishable from shards that do not exist. Raises `InvalidArgument` for a pattern without
        exactly one slash.
        """
        if patterns is None:
            return self
        halves = [pattern_halves(pattern) for pattern in patterns]

        def seen(shard: Shard) -> bool:
            region, department = (unicodedata.normalize("NFC", name) for name in (shard.region, shard.department))
            return any(fnmatchcase(region, left) and fnmatchcase(department, right) for left, right in halves)

        return replace(
            self,
            lake=_THIS_LAKE,  # its URI is not for callers with limited access
            entries={shard: entry for shard, entry in self.entries.items() if seen(shard)},
            broken={key: why for key, why in self.broken.items() if (shard := shard_of_key(key)) and seen(shard)},
        )

    def route(self, regions: Iterable[str] | None, departments: Iterable[str] | None) -> list[CatalogEntry]:
        """Return the published shards in these regions and departments (None: all), sorted by key.

        Raises `InvalidShardName`, `InvalidArgument` for an empty list or a bare string, and `UnknownScope` if a name or
        the combination matches no shard.
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
                raise UnknownScope(
                    f"nothing is published in {self.lake}; check RAG_LAKE_URI, or run `rag-assets backfill`"
                )
            raise UnknownScope(
                "no published shard is in these regions and departments together; list the shards with "
                "`rag-serving shards` or GET /v1/shards"
            )
        return routed

    def broken_in(self, regions: Iterable[str] | None, departments: Iterable[str] | None) -> tuple[str, ...]:
        """Return marks for shards in the scope whose catalog object is invalid, so that answers are marked degraded."""
        marks: list[str] = []
        for key in sorted(self.broken):
            shard = shard_of_key(key)
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
                listed = "list the shards with `rag-serving shards` or GET /v1/shards"
                hint = f"did you mean {', '.join(close)}?" if close else listed
                raise UnknownScope(f"no published shard has the {kind} {name!r}; {hint}")
            chosen |= matching
        return chosen


class Catalog:
    """Reads the catalog objects and refetches those whose etag changed. Thread-safe."""

    def __init__(
        self,
        objects: ObjectStore,
        *,
        refresh_seconds: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
        lake: str = _THIS_LAKE,
    ) -> None:
        """`lake` is the URI that messages show."""
        self._lake = lake
        self._objects = objects
        self._refresh = refresh_seconds
        self._clock = clock
        self._lock = Lock()
        self._read: dict[str, tuple[str, CatalogEntry | CompanyRecord | str]] = {}
        self._snapshot: Snapshot | None = None
        self._taken = 0.0

    @property
    def latest(self) -> Snapshot | None:
        """The last snapshot, whatever its age."""
        return self._snapshot

    def cached(self) -> Snapshot | None:
        """Return the last snapshot if it is at most `refresh_seconds` old."""
        if self._snapshot is not None and self._clock() - self._taken < self._refresh:
            return self._snapshot
        return None

    @property
    def age(self) -> float:
        """Seconds since the catalog was last read; 0 before the first time."""
        return self._clock() - self._taken if self._snapshot is not None else 0.0

    def snapshot(self) -> Snapshot:
        """Return a snapshot that is at most `refresh_seconds` old; raises `LakeUnavailable`."""
        with self._lock:
            return self.cached() or self._refreshed()

    def _refreshed(self) -> Snapshot:
        taken = self._clock()
        # Records first: entries that the catalog no longer names are then simply unused.
        listed = [*self._objects.list(RECORDS), *self._objects.list(CATALOG)]
        listing = {entry.key: entry.etag for entry in listed if entry.key.endswith(".json")}
        changed = [key for key, etag in listing.items() if key not in self._read or self._read[key][0] != etag]
        kept = {key: value for key, value in self._read.items() if key in listing}
        if not any(key.startswith(f"{CATALOG}/") for key in listing):
            self._require_lake()
        if changed:
            with ThreadPoolExecutor(max_workers=min(16, len(changed))) as pool:
                kept.update((key, value) for key, value in pool.map(self._fetch, changed) if value is not None)
            if not any(isinstance(value, CatalogEntry) for _, value in kept.values()):
                _raise_if_unreadable(kept)
        unchanged = self._snapshot is not None and not changed and kept.keys() == self._read.keys()
        self._read = kept
        self._taken = taken
        if not unchanged or self._snapshot is None:
            values = [value for _, value in kept.values()]
            broken = {key: value for key, (_, value) in kept.items() if isinstance(value, str)}
            before = {} if self._snapshot is None else self._snapshot.broken
            for key in sorted(broken):
                if broken[key] != before.get(key):
                    _log.warning("%s is left out: %s", key, broken[key])
            self._snapshot = Snapshot(
                {value.shard: value for value in values if isinstance(value, CatalogEntry)},
                broken,
                {value.fingerprint: value for value in values if isinstance(value, CompanyRecord)},
                self._lake,
            )
        return self._snapshot

    def _require_lake(self) -> None:
        """Raise `LakeUnavailable` if all entries vanished together with the models, which are never deleted.

        A mount point is an empty folder while its file system is not mounted, and a prefix may be emptied by mistake.
        """
        if self._snapshot is not None and self._snapshot.entries and not self._objects.list(MODELS):
            raise LakeUnavailable(f"everything in {self._lake} has vanished; check RAG_LAKE_URI and what it points to")

    def _fetch(self, key: str) -> tuple[str, tuple[str, CatalogEntry | CompanyRecord | str] | None]:
        try:
            stored = self._objects.get(key)
        except LakeUnavailable as error:
            return key, (_UNREADABLE, str(error))
        if stored is None:
            return key, None
        try:
            if key.startswith(f"{RECORDS}/"):
                fingerprint = key.removeprefix(f"{RECORDS}/").removesuffix(".json")
                return key, (stored.etag, read_record(fingerprint, stored.data))
            shard = Shard.from_table_name(table_of_key(key))
            return key, (stored.etag, read_entry(shard, stored.data))
        except (LakeCorrupt, InvalidShardName) as error:
            return key, (stored.etag, str(error))


def _raise_if_unreadable(read: Mapping[str, tuple[str, CatalogEntry | CompanyRecord | str]]) -> None:
    for etag, value in read.values():
        if etag == _UNREADABLE:
            raise LakeUnavailable(str(value))
