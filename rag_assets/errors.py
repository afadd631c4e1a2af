"""Errors of the pipeline: the part of the tree of `rag_serving.errors` that only writers of the lake raise."""

from rag_serving.errors import RagError


class SourceUnavailable(RagError):
    """The source does not respond. Nothing was changed; a retry may succeed."""


class SourceRefused(SourceUnavailable):
    """The bucket or folder does not exist or rejects the credentials; retrying does not help."""


class ParserUnavailable(RagError):
    """No parser process can be started. No document is quarantined for it."""


class FeedUnavailable(RagError):
    """The queue or topic of arrivals does not respond. Its messages stay there; a retry may succeed."""


class FeedRefused(FeedUnavailable):
    """The queue or topic does not exist or rejects the credentials; retrying does not help."""


class ShardLocked(RagError):
    """Another writer holds the shard's lease; the shard was not changed."""


class LeaseLost(RagError):
    """Another writer may have taken over the shard's lease; this one must stop writing."""


class MassDeleteRefused(RagError):
    """The run would delete more of a shard than it may without explicit permission; nothing was deleted."""


class ChecksFailed(RagError):
    """The shard's new table is inconsistent or worse than the published version, which stays published."""


class ShardNotGone(RagError):
    """The shard has documents in the source and cannot be retired."""


class VersionNotKept(RagError):
    """The shard has no such published version to roll back to."""


class ExportError(RagError):
    """The embedding model cannot be loaded, or its export does not reproduce its vectors."""


class OrchestrationError(RagError):
    """Dagster is not set up for the command (no DAGSTER_HOME, no daemon); the message says what to do."""
