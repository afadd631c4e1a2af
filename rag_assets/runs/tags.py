"""Tags of runs: the partition, what a run is permitted to do, and whether it compares whole tables."""

from collections.abc import Mapping

PARTITION_TAG = "dagster/partition"
ALLOW_MASS_DELETE_TAG = "rag/allow_mass_delete"
ACCEPT_WORSE_TAG = "rag/accept_worse_retrieval"
WHOLE_TAG = "rag/compare_whole_tables"


def flag(tags: Mapping[str, str], name: str) -> bool:
    """Whether a run bears the tag with the value true."""
    return tags.get(name, "").lower() == "true"
