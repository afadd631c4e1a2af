"""Which published versions are tagged, so that cleanup keeps them for readers and for a rollback."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from rag_assets.storage.lake import Table
from rag_serving.lake.catalog_entry import HISTORY_LENGTH, CatalogEntry

_TAG = "published-"


@dataclass(frozen=True, slots=True)
class Retention:
    """The last `versions` are kept, and those that readers may use until `pin` after their successor's publish."""

    versions: int
    pin: timedelta


def kept_versions(table: Table) -> dict[int, str]:
    """Return the tagged versions of the table with their tags."""
    return {tag["version"]: name for name, tag in table.tags.list().items() if name.startswith(_TAG)}


def drop_old_tags(table: Table, entry: CatalogEntry, retention: Retention) -> None:
    """Untag the versions that `retention` no longer keeps."""
    publications = (entry.current, *entry.history)
    last = list(dict.fromkeys(publication.version for publication in publications))[: retention.versions]
    since = datetime.now(UTC) - retention.pin
    # A version was current until its successor was published.
    pinned = {older.version for newer, older in pairwise(publications) if newer.published_at > since}
    if len(publications) > HISTORY_LENGTH and publications[-1].published_at > since:
        return  # versions too old for the history may still have readers
    for version, name in kept_versions(table).items():
        if version not in pinned and version not in last:
            table.tags.delete(name)


def tag_version(table: Table, version: int) -> None:
    """Tag the version as published, unless it is tagged already."""
    name = f"{_TAG}{version}"
    if name not in table.tags.list():
        table.tags.create(name, version)
