"""Which tables are searched for a scope. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rag_serving.lake.catalog_entry import CatalogEntry
from rag_serving.lake.company_index import COMPANY, SHARD_COLUMN, CompanyRecord
from rag_serving.lake.search.parameters import COMPANY_PROBES, MAX_PROBES, PROBES
from rag_serving.lake.search.query import Query
from rag_serving.lake.sql import sql_in, sql_not_in
from rag_serving.lake.tables import SHARDS, TABLE_FORMAT


@dataclass(frozen=True, slots=True)
class Target:
    """One pinned table to search: a shard's, or a company table under a filter of shards."""

    folder: str
    table: str
    version: int
    fingerprint: str
    format: int
    scope: str | None = None
    probes: int = PROBES
    name: str = ""
    """How a failure of it is marked."""


def plan(
    entries: Sequence[CatalogEntry], companies: Mapping[str, CompanyRecord], query: Query, wide: int
) -> list[Target]:
    """The tables that answer for these shards. Pure.

    More than `wide` shards of one embedder are looked for in its company table, as far as that holds of them what the
    catalog names: the same content, and for a filter of dates the same version, since a document's date is no content.
    """
    targets: list[Target] = []
    by_fingerprint: dict[str, list[CatalogEntry]] = {}
    for entry in entries:
        if entry.current.chunks:
            by_fingerprint.setdefault(entry.current.fingerprint, []).append(entry)
    for fingerprint, group in by_fingerprint.items():
        record = companies.get(fingerprint)
        indexed = (
            [] if record is None else [entry for entry in group if _is_current(record, entry, exact=query.by_date)]
        )
        if record is not None and len(indexed) > wide:
            targets.append(company_target(record, indexed))
            there = {entry.shard for entry in indexed}
            group = [entry for entry in group if entry.shard not in there]
        targets += map(shard_target, group)
    return targets


def _is_current(record: CompanyRecord, entry: CatalogEntry, *, exact: bool) -> bool:
    indexed = record.shards.get(entry.shard.key)
    if indexed is None or indexed.content_digest != entry.current.content_digest:
        return False
    return not exact or indexed.version == entry.current.version


def shard_target(entry: CatalogEntry) -> Target:
    current = entry.current
    return Target(
        SHARDS,
        entry.table,
        current.version,
        current.fingerprint,
        current.table_format,
        name=f"shard_unavailable:{entry.shard}",
    )


def company_target(record: CompanyRecord, indexed: Sequence[CatalogEntry] | None) -> Target:
    """The company table, narrowed to those shards by the shorter of two filters; None for all that it holds."""
    filled = {key for key, other in record.shards.items() if other.chunks}
    keys = filled if indexed is None else {entry.shard.key for entry in indexed}
    others = filled - keys
    scope: str | None = None
    probes = COMPANY_PROBES
    if others:
        inside = len(keys) <= len(others)
        scope = sql_in(SHARD_COLUMN, sorted(keys)) if inside else sql_not_in(SHARD_COLUMN, sorted(others))
        # As many rows of the scope are to be looked at as a search without a filter looks at rows.
        share = sum(record.shards[key].chunks for key in keys) / max(record.rows, 1)
        probes = min(round(COMPANY_PROBES / max(share, 1e-3)), MAX_PROBES)
    name = f"company_index_unavailable:{record.fingerprint[:8]}"
    return Target(COMPANY, record.fingerprint, record.version, record.fingerprint, TABLE_FORMAT, scope, probes, name)
