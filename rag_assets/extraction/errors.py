"""Why a document could not be read: the closed set of reasons, and the one exception that carries them."""

from enum import StrEnum


class QuarantineReason(StrEnum):
    """Why a document is set aside. The set is closed: operators filter and alert on these words."""

    UNSUPPORTED_TYPE = "unsupported_type"
    EMPTY = "empty"
    ENCRYPTED = "encrypted"
    MALFORMED = "malformed"
    TOO_LARGE = "too_large"
    FETCH_FAILED = "fetch_failed"
    CRASHED = "crashed"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"


class ExtractionError(Exception):
    """A document has no text that can be indexed.

    `reason` is for machines; `detail` is one short sentence for the person who owns the document. It says
    what to do where something can be done, and quotes no content.
    """

    def __init__(self, reason: QuarantineReason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"
