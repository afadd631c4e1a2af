"""Every error that this project raises on purpose, in one tree.

    RagError
    ├── SettingsError            a setting is missing or malformed
    ├── InvalidQuestion          empty, or longer than a question can be
    ├── InvalidArgument          k, filters or another argument out of range
    ├── InvalidShardName         a region or department that cannot name a shard
    ├── UnknownScope             no published shard has that region or department
    ├── LakeError
    │   ├── LakeUnavailable      the lake cannot be reached, or refuses the credentials
    │   ├── LakeCorrupt          an object or table in the lake breaks the read contract
    │   └── WriteConflict        a conditional write lost against another writer
    ├── EmbedderUnavailable      the lake holds no embedder that a shard needs, or a hosted one gives no vectors
    ├── RerankerUnavailable      the reranker gave no scores (hits come in the order of their fusion)
    ├── NotAllowed               the service does not know the key
    ├── TooManyRequests          more requests than the key may make
    ├── Overloaded               as many questions wait already as may
    ├── DeadlineExceeded         no answer in the time that a question may take
    ├── ServiceError
    │   ├── ServiceUnavailable   the service cannot be reached, fails, or breaks off
    │   └── UnexpectedReply      what came back is nothing that this client's service sends
    ├── NotOffered               only a client of the lake itself can do that
    ├── CacheUnavailable         Redis cannot be reached (answers go on without it)
    └── ModelUnavailable         the language model gave no answer (a marked extract is served instead)

Messages say what happened and what to do, and never hold a secret or a document's text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

__all__ = [
    "CacheUnavailable",
    "DeadlineExceeded",
    "EmbedderUnavailable",
    "InvalidArgument",
    "InvalidQuestion",
    "InvalidShardName",
    "LakeCorrupt",
    "LakeError",
    "LakeUnavailable",
    "ModelUnavailable",
    "NotAllowed",
    "NotOffered",
    "Overloaded",
    "RagError",
    "RerankerUnavailable",
    "ServiceError",
    "ServiceUnavailable",
    "SettingsError",
    "TooManyRequests",
    "UnexpectedReply",
    "UnknownScope",
    "WriteConflict",
]


class RagError(Exception):
    """Base of every deliberate error here."""

    retry_after: int | None = None
    """Seconds after which asking again may help, where that is known."""


class SettingsError(RagError):
    """A setting is missing or malformed; the message names the environment variable."""


class InvalidQuestion(RagError, ValueError):
    """The question is empty or too long."""


class InvalidArgument(RagError, ValueError):
    """An argument other than the question is out of range."""


class InvalidShardName(RagError, ValueError):
    """A region or department holds characters that no path, filter or tag may carry."""


class UnknownScope(RagError, LookupError):
    """No published shard matches the regions and departments asked for."""


class LakeError(RagError):
    """Something about the lake."""


class LakeUnavailable(LakeError):
    """The lake does not answer, does not exist, or refuses the credentials."""


class LakeCorrupt(LakeError):
    """What was read from the lake does not validate against the read contract."""


class WriteConflict(LakeError):
    """The object changed between the read and the conditional write; read again and decide anew."""


class ServiceError(RagError):
    """Something about the service that a client asks."""


class ServiceUnavailable(ServiceError):
    """The service cannot be reached, fails, or broke off in the middle of a reply."""


class UnexpectedReply(ServiceError):
    """What answered is another program or another version, or its reply has no reasonable size."""


class NotOffered(RagError, NotImplementedError):
    """A service does not offer it; a client of the lake itself does."""


class EmbedderUnavailable(RagError):
    """The lake holds no embedder of that fingerprint, or the API of a hosted one gives no vectors."""


class RerankerUnavailable(RagError):
    """The reranker failed, or did not score every passage."""


class CacheUnavailable(RagError):
    """The cache's server does not answer. `known` says that it did not a moment ago either, and was not asked now."""

    def __init__(self, message: str, *, known: bool = False) -> None:
        super().__init__(message)
        self.known = known


class ModelUnavailable(RagError):
    """The language model failed after its bounded retries."""


class NotAllowed(RagError):
    """The key is missing, unknown or revoked."""


class TooManyRequests(RagError):
    """More requests in a minute than the key, or the address that tries keys, may make."""

    def __init__(self, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(RagError):
    """As many questions wait already as may; ask again in a moment."""


class DeadlineExceeded(RagError, TimeoutError):
    """There was no answer within the time that one question may take."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 200 characters; its class if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def first_problem(error: ValidationError, *, depth: int | None = None) -> str:
    """Return where a value failed validation and why, without the value; `depth` bounds the parts of the place."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"][:depth])
    return f"{where}: {first['msg']}" if where else first["msg"]


def error_named(name: str) -> type[RagError]:
    """The class of that name in this tree, `RagError` for any other name."""
    found = globals().get(name)
    return found if isinstance(found, type) and issubclass(found, RagError) else RagError
