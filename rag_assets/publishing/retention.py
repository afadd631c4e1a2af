"""Which published versions are tagged and kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

from rag_serving.lake.catalog_entry import HISTORY_LENGTH, CatalogEntry

if TYPE_CHECKING:
    from lancedb.table import Table

_TAG = "published-"


def kept_versions(table: Table) -> dict[int, str]:
    """Versions of the table that a tag keeps, with the tag."""
    return {tag["version"]: name for name, tag in table.tags.list().items() if name.startswith(_TAG)}


def drop_old_tags(table: Table, entry: CatalogEntry, *, keep: int, pin_seconds: float) -> None:
    """Untag versions beyond the last `keep`, but none that a reader may still be on.

    A reader may stay on a version for `pin_seconds` after the catalog has named another.
    """
    publications = (entry.current, *entry.history)
    last = list(dict.fromkeys(publication.version for publication in publications))[:keep]
    since = datetime.now(UTC) - timedelta(seconds=pin_seconds)
    # A version was readers' until its successor came.
    pinned = {older.version for newer, older in pairwise(publications) if newer.published_at > since}
    if len(publications) > HISTORY_LENGTH and publications[-1].published_at > since:
        return  # what came before the history may still be read as well
    for version, name in kept_versions(table).items():
        if version not in pinned and version not in last:
            table.tags.delete(name)


def tag_version(table: Table, version: int) -> None:
    name = f"{_TAG}{version}"
    if name not in table.tags.list():
        table.tags.create(name, version)
