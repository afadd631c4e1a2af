"""Select the shards of a backfill by state, region and department. Pure."""

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from enum import StrEnum

from rag_serving.errors import UnknownScope
from rag_serving.lake.shards import Shard, check_name, same_name


class Selection(StrEnum):
    """The states by which a backfill selects shards."""

    CHANGED = "changed"
    """The source differs from the published version, or nothing was published."""
    MISSING = "missing"
    """Never published."""
    FAILED = "failed"
    """The latest run failed."""
    ALL = "all"


def select_shards(
    which: Selection,
    listed: Mapping[Shard, str],
    published: Mapping[Shard, str],
    failed: Collection[Shard],
    *,
    regions: Sequence[str] = (),
    departments: Sequence[str] = (),
) -> list[Shard]:
    """Return the shards in that state, sorted; empty filters match every region and department.

    `listed` and `published` map shards to source digests. Raises `InvalidShardName`, and `UnknownScope` for a region or
    department, or a pair of them, that neither contains.
    """
    known = listed.keys() | published.keys()
    _check_known("region", regions, {shard.region for shard in known})
    _check_known("department", departments, {shard.department for shard in known})
    chosen = {
        Selection.ALL: known,
        Selection.MISSING: listed.keys() - published.keys(),
        Selection.FAILED: set(failed) & known,
        Selection.CHANGED: {shard for shard in known if listed.get(shard) != published.get(shard)},
    }[which]
    named = {
        shard
        for shard in known
        if (not regions or any(same_name(shard.region, name) for name in regions))
        and (not departments or any(same_name(shard.department, name) for name in departments))
    }
    if not named and regions and departments:
        raise UnknownScope(f"no shard {regions[0]}/{departments[0]} in the source or the lake")
    return sorted(named & set(chosen))


def _check_known(kind: str, names: Sequence[str], known: set[str]) -> None:
    for name in names:
        check_name(kind, name)
        if not any(same_name(name, other) for other in known):
            close = get_close_matches(name, known, n=3)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise UnknownScope(f"no {kind} {name!r} in the source or the lake{hint}")
