"""Tags of runs: the partition, permissions, and whether whole tables are compared."""

from collections.abc import Mapping

PARTITION_TAG = "dagster/partition"
ALLOW_MASS_DELETE_TAG = "rag/allow_mass_delete"
ACCEPT_WORSE_TAG = "rag/accept_worse_retrieval"
WHOLE_TAG = "rag/compare_whole_tables"


def flag(tags: Mapping[str, str], name: str) -> bool:
    """Return whether the run has the tag with the value true."""
    return tags.get(name, "").lower() == "true"
