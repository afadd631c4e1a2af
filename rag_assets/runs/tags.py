"""Names that definitions and launchers share: tags of runs, and the description of the resource `pipeline`."""

from collections.abc import Mapping

PARTITION_TAG = "dagster/partition"
ALLOW_MASS_DELETE_TAG = "rag/allow_mass_delete"
ACCEPT_WORSE_TAG = "rag/accept_worse_retrieval"
WHOLE_TAG = "rag/compare_whole_tables"
OBJECTS_TAG = "rag/objects"
"""Number of objects in the shard when the run was requested."""
LAKE_TAG = "rag/lake"
"""URI of the lake that has the run's heartbeat."""
PIPELINE_RESOURCE = "Source, lake and models of this deployment. A run that uses it keeps a heartbeat in the lake."


def flag(tags: Mapping[str, str], name: str) -> bool:
    """Return whether the run has the tag with the value true."""
    return tags.get(name, "").lower() == "true"
