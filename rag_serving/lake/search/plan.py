"""Choose the tables to search for a scope. Pure functions."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rag_serving.lake.catalog_entry import CatalogEntry, Publication
from rag_serving.lake.company_index import COMPANY, SHARD_COLUMN, CompanyRecord
from rag_serving.lake.search.parameters import COMPANY_PROBES, MAIN_LANGUAGE_SHARE, MAX_PROBES, MOST_LANGUAGES, PROBES
from rag_serving.lake.search.query import Query
from rag_serving.lake.search.words import OWN_SCRIPT
from rag_serving.lake.shards import Shard
from rag_serving.lake.sql import sql_in, sql_not_in
from rag_serving.lake.tables import SHARDS


@dataclass(frozen=True, slots=True)
class Target:
    """A pinned table to search: a shard's, or a company table filtered by shards."""

    folder: str
    table: str
    version: int
    fingerprint: str
    format: int
    shards: frozenset[str]
    """Shards that its rows may be of, as ``region/department``."""
    scope: str | None = None
    probes: int = PROBES
    name: str = ""
    """Mark of its failure."""
    languages: tuple[str, ...] = ()
    """Languages of its passages (ISO 639-1), most first, without rare ones."""
    read: tuple[str, ...] | None = None
    """Languages that the embedder reads; None for any."""


def plan(
    entries: Sequence[CatalogEntry], companies: Mapping[str, CompanyRecord], query: Query, wide: int
) -> list[Target]:
    """Return the tables to search for these shards.

    If an embedder's company table has current copies of more than `wide` of the shards, it is searched for them; the
    other shards are searched directly. A copy is current if its content is equal, and for date filters also its
    version, because a document's date is not part of the content.
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
    """Return the target of a shard's own table."""
    return publication_target(entry.shard, entry.current)


def publication_target(shard: Shard, published: Publication) -> Target:
    """Return the target of one published version of a shard's table."""
    return Target(
        SHARDS,
        shard.table_name,
        published.version,
        published.fingerprint,
        published.table_format,
        frozenset({shard.key}),
        name=f"shard_unavailable:{shard}",
        languages=main_languages(published.languages),
        read=published.embedder_reads,
    )


def not_searched(entries: Iterable[CatalogEntry], fingerprints: Collection[str]) -> tuple[str, ...]:
    """Return the mark of each shard with vectors of one of these embedders."""
    return tuple(shard_target(entry).name for entry in entries if entry.current.fingerprint in fingerprints)


def main_languages(chunks: Mapping[str, int]) -> tuple[str, ...]:
    """Return the languages to stem a question in, most chunks first, given the numbers of chunks by language.

    These are a few main ones, because the stems of each add words that no passage has, and all with letters of their
    own, because they do not add any.
    """
    enough = MAIN_LANGUAGE_SHARE * sum(chunks.values())
    most_first = sorted(((count, language) for language, count in chunks.items() if language), reverse=True)
    in_latin_letters = [(count, language) for count, language in most_first if language not in OWN_SCRIPT]
    main = {language for count, language in in_latin_letters[:MOST_LANGUAGES] if count >= enough}
    return tuple(language for _, language in most_first if language in main or language in OWN_SCRIPT)


def _languages_of_all(publications: Sequence[Publication]) -> tuple[str, ...]:
    """Return the languages of the shards together: each finds in the company index what it finds by itself."""
    chunks = sum((Counter(publication.languages) for publication in publications), Counter[str]())
    used = {language for publication in publications for language in main_languages(publication.languages)}
    return tuple(language for _, language in sorted(((chunks[one], one) for one in used), reverse=True))


def company_target(record: CompanyRecord, indexed: Sequence[CatalogEntry] | None) -> Target:
    """Return the target of a company table, filtered by shards (None: all of it) with the shorter of two filters."""
    filled = {key for key, other in record.shards.items() if other.chunks}
    keys = frozenset(filled if indexed is None else {entry.shard.key for entry in indexed})
    others = filled - keys
    scope: str | None = None
    probes = COMPANY_PROBES
    if others:
        inside = len(keys) <= len(others)
        scope = sql_in(SHARD_COLUMN, sorted(keys)) if inside else sql_not_in(SHARD_COLUMN, sorted(others))
        # Examine as many rows of the scope as a search without a filter examines in total.
        share = sum(record.shards[key].chunks for key in keys) / max(record.rows, 1)
        probes = min(round(COMPANY_PROBES / max(share, 1e-3)), MAX_PROBES)
    name = f"company_index_unavailable:{record.fingerprint[:8]}"
    publications = [entry.current for entry in indexed or ()]
    return Target(
        COMPANY,
        record.fingerprint,
        record.version,
        record.fingerprint,
        record.table_format,
        keys,
        scope,
        probes,
        name,
        _languages_of_all(publications),
        publications[0].embedder_reads if publications else None,
    )
