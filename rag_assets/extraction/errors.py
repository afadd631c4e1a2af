"""The reasons why a document is unreadable, and the exception that carries one."""

from enum import StrEnum


class QuarantineReason(StrEnum):
    """Why a document, or a part of it, is quarantined.

    Operators filter and alert on these values, so they never change.
    """

    UNSUPPORTED_TYPE = "unsupported_type"
    EMPTY = "empty"
    ENCRYPTED = "encrypted"
    MALFORMED = "malformed"
    TOO_LARGE = "too_large"
    INCOMPLETE = "incomplete"
    """The document is published without a part of its content."""
    FETCH_FAILED = "fetch_failed"
    CRASHED = "crashed"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"


class ExtractionError(Exception):
    """A document cannot be indexed.

    `detail` is a short sentence for the document's owner that says what to do, without quoting content.
    """

    def __init__(self, reason: QuarantineReason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"
