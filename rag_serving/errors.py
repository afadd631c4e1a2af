"""The exceptions of this package.

    RagError
    ├── SettingsError            a setting is missing or malformed
    │   └── MissingExtra         an optional package is not installed
    ├── InvalidQuestion          the question is empty or too long
    ├── InvalidArgument          k, a filter or another argument is out of range
    │   └── UnsupportedParameter a request in OpenAI's protocol asks for what the service does not do
    ├── InvalidShardName         a region or department cannot name a shard
    ├── UnknownScope             no published shard matches the regions and departments
    │   └── UnknownModel         a model's name in OpenAI's protocol matches no shard that the key can see
    ├── UnknownDocument          no published document has this id
    ├── SourceNotOffered         the client or service does not open this document's original
    ├── SourceGone               the original of a document was deleted since it was indexed
    ├── SourceUnavailable        the originals cannot be reached
    ├── LakeError
    │   ├── LakeUnavailable      the lake cannot be reached, or rejects the credentials
    │   ├── LakeCorrupt          an object or table in the lake breaks the read contract
    │   └── WriteConflict        another writer won a conditional write
    ├── EmbedderUnavailable      a shard's embedder is missing from the lake, or a hosted one failed
    ├── RerankerUnavailable      the reranker failed (hits keep their fused order)
    ├── NotAllowed               the API key is missing, unknown or revoked
    ├── TooManyRequests          the rate limit of the key or the address is exceeded
    ├── Overloaded               too many questions are queued
    ├── DeadlineExceeded         no answer before the deadline
    ├── ServiceError
    │   ├── ServiceUnavailable   the service cannot be reached, fails, or drops the connection
    │   └── UnexpectedReply      the response is not one that a service of this version sends
    ├── NotOffered               only a client of the lake itself supports this
    ├── CacheUnavailable         Redis cannot be reached (questions are answered without it)
    └── ModelUnavailable         the language model failed (an extract marked as degraded is served instead)

Messages state what happened and what to do about it. They never contain a secret or a document's text.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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
    "MissingExtra",
    "ModelUnavailable",
    "NotAllowed",
    "NotOffered",
    "Overloaded",
    "RagError",
    "RerankerUnavailable",
    "ServiceError",
    "ServiceUnavailable",
    "SettingsError",
    "SourceGone",
    "SourceNotOffered",
    "SourceUnavailable",
    "TooManyRequests",
    "UnexpectedReply",
    "UnknownDocument",
    "UnknownModel",
    "UnknownScope",
    "UnsupportedParameter",
    "WriteConflict",
]


class RagError(Exception):
    """Base class of the exceptions that this package raises deliberately."""

    retry_after: int | None = None
    """Seconds until a retry may succeed, if known."""
    code: str | None = None
    """The error's name in OpenAI's protocol, if it has one."""
    param: str | None = None
    """The field of the request that is wrong, if known."""


class SettingsError(RagError):
    """A setting is missing or malformed; the message names the environment variable."""


class MissingExtra(SettingsError, ImportError):
    """A package of an optional extra is not installed; the message has the command that installs it."""


class InvalidQuestion(RagError, ValueError):
    """The question is empty or too long."""


class InvalidArgument(RagError, ValueError):
    """An argument other than the question is out of range."""


class UnsupportedParameter(InvalidArgument):
    """A request in OpenAI's protocol asks for what the service does not do; `param` is the field."""

    code = "unsupported_parameter"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidShardName(RagError, ValueError):
    """A region or department contains characters that are not allowed in a path, filter or tag."""


class UnknownScope(RagError, LookupError):
    """No published shard matches the requested regions and departments."""


class UnknownModel(UnknownScope):
    """A model's name in OpenAI's protocol matches no published shard that the key can see."""

    code = "model_not_found"
    param = "model"


class UnknownDocument(RagError, LookupError):
    """No document with this id is published in the shard, or the caller may not see the shard."""


class SourceNotOffered(RagError):
    """The original of the document is not opened here: it is not below RAG_SOURCE_URI, or that is not set."""


class SourceGone(RagError):
    """The original of the document was deleted since the document was indexed."""


class SourceUnavailable(RagError):
    """The folder or bucket of the originals cannot be reached, or rejects the credentials."""


class LakeError(RagError):
    """Base class of errors of the lake."""


class LakeUnavailable(LakeError):
    """The lake cannot be reached, does not exist, or rejects the credentials."""


class LakeCorrupt(LakeError):
    """An object or table in the lake breaks the read contract."""


class WriteConflict(LakeError):
    """The object changed between the read and the conditional write; read it again and retry."""


class ServiceError(RagError):
    """Base class of errors of the service that a client queries."""


class ServiceUnavailable(ServiceError):
    """The service cannot be reached, fails, or drops the connection during a response."""


class UnexpectedReply(ServiceError):
    """The response is too large or comes from another program or version."""


class NotOffered(RagError, NotImplementedError):
    """The method needs a client of the lake itself; a service does not offer it."""


class EmbedderUnavailable(RagError):
    """The lake has no embedder with this fingerprint, or a hosted embedder returned no vectors."""


class RerankerUnavailable(RagError):
    """The reranker failed, or did not score every passage."""


class CacheUnavailable(RagError):
    """Redis does not respond. If `known`, it failed a moment ago and was not contacted this time."""

    def __init__(self, message: str, *, known: bool = False) -> None:
        super().__init__(message)
        self.known = known


class ModelUnavailable(RagError):
    """Every configured language model failed, after its retries."""


class NotAllowed(RagError):
    """The API key is missing, unknown or revoked."""


class TooManyRequests(RagError):
    """The key exceeded its requests per minute, or the address tried too many wrong keys."""

    def __init__(self, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(RagError):
    """Too many questions are queued; retry shortly."""


class DeadlineExceeded(RagError, TimeoutError):
    """There was no answer before the deadline."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class name; cut to 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def first_problem(error: "ValidationError", *, depth: int | None = None) -> str:
    """Return the field that failed validation and why, without its value; `depth` limits the field's path."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"][:depth])
    return f"{where}: {in_plain_words(first)}" if where else in_plain_words(first)


_PLAIN = {
    "missing": "is missing",
    "extra_forbidden": "is not a known field",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "dict_type": "must be a JSON object",
    "model_type": "must be a JSON object",
    "model_attributes_type": "must be a JSON object",
    "list_type": "must be a list",
    "string_unicode": "must be valid Unicode",
    "datetime_type": "must be a date and time, such as 2026-05-01T12:00:00Z",
    "datetime_parsing": "must be a date and time, such as 2026-05-01T12:00:00Z",
    "datetime_from_date_parsing": "must be a date and time, such as 2026-05-01T12:00:00Z",
}


def in_plain_words(problem: Mapping[str, Any]) -> str:
    """Return what is wrong in one of pydantic's errors, without the terms of pydantic: "must be a whole number"."""
    message = str(problem["msg"]).removeprefix("Value error, ").replace(" after validation", "")
    return _PLAIN.get(problem["type"]) or re.sub(r"^\w+ should ", "must ", message)


def error_named(name: str) -> type[RagError]:
    """Return the exception class with this name, or `RagError` if there is none."""
    found = globals().get(name)
    return found if isinstance(found, type) and issubclass(found, RagError) else RagError
