"""Errors of the pipeline; they hang in the one tree of `rag_serving.errors`.

RagError
├── SourceUnavailable     the source does not answer; trying again may help
│   └── SourceRefused     the bucket or folder does not exist, or refuses the credentials
├── ParserUnavailable     no process can be started to parse documents in
├── FeedUnavailable       the queue or topic does not answer; trying again may help
│   └── FeedRefused       the queue or topic does not exist, or refuses the credentials
├── ShardLocked           another writer holds the shard's lease
├── LeaseLost             this writer's lease was taken over; it must stop
├── MassDeleteRefused     a run would delete more of a shard than is allowed without say-so
├── ChecksFailed          a table breaks an invariant that publishing depends on
├── VersionNotKept        a rollback names a version that the shard does not have
├── ExportError           the embedding model cannot be loaded or exported faithfully
└── OrchestrationError    Dagster is not set up for what was asked (no home, no daemon)
"""

from rag_serving.errors import RagError


class SourceUnavailable(RagError):
    """The source cannot be listed or read; nothing was changed."""


class SourceRefused(SourceUnavailable):
    """The source does not exist or does not let us in; trying again does not help."""


class ParserUnavailable(RagError):
    """Documents cannot be parsed at all; none was blamed for it."""


class FeedUnavailable(RagError):
    """The queue or topic of arrivals cannot be read; what it holds stays there."""


class FeedRefused(FeedUnavailable):
    """The queue or topic does not exist or does not let us in; trying again does not help."""


class ShardLocked(RagError):
    """Another writer holds the shard; it was left alone."""


class LeaseLost(RagError):
    """The shard's lease was lost in mid-work; nothing more may be written."""


class MassDeleteRefused(RagError):
    """The listing would delete too much of what the shard holds; nothing was deleted."""


class ChecksFailed(RagError):
    """The shard's new table is not consistent; the published version stays."""


class VersionNotKept(RagError):
    """There is no such published version to go back to."""


class ExportError(RagError):
    """The embedding model cannot be exported."""


class OrchestrationError(RagError):
    """Dagster cannot do what was asked; the message says what to start or set."""
