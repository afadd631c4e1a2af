"""Read the golden questions of a shard. Like documents, they are untrusted.

``region/department/_eval/*.jsonl`` has one JSON object per line: a question, the document or documents that answer it,
and optionally a quote that a passage must contain to count as a hit. Invalid lines are reported and skipped.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints, ValidationError, field_validator

from rag_assets.sources.base import (
    GOLDEN_FOLDER,
    ObjectGone,
    ObjectUnreadable,
    Source,
    SourceObject,
    golden_shard_of,
    shard_of,
)
from rag_serving.errors import first_problem
from rag_serving.lake.shards import Shard

MOST_FILES = 20
MOST_BYTES = 2**20
"""Per file."""
MOST_QUESTIONS = 200
"""Per shard. Each costs an embedding and, if the shard changed, four searches."""
MOST_CHARACTERS = 1_000
_MOST_KEY_BYTES = 1024  # S3's limit
MOST_DOCUMENTS = 10
MOST_INVALID = 200
"""Invalid lines after which a shard's files are not read further."""
_MOST_OBJECTS = 1_000
"""Objects of the folder that are listed."""

_Key = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=_MOST_KEY_BYTES)]
_Question = Annotated[
    str,
    BeforeValidator(lambda value: value.strip() if isinstance(value, str) else value),  # also U+001C to U+001F
    StringConstraints(min_length=1, max_length=MOST_CHARACTERS),
]
_Quote = Annotated[str, StringConstraints(strip_whitespace=True, max_length=MOST_CHARACTERS)]
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class _Line(BaseModel):
    """One line of a file. Additional fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    question: _Question
    document: _Key | tuple[_Key, ...]
    quote: _Quote | None = None

    @field_validator("document")
    @classmethod
    def _together(cls, value: str | tuple[str, ...]) -> tuple[str, ...]:
        keys = (value,) if isinstance(value, str) else value
        if not 1 <= len(keys) <= MOST_DOCUMENTS:
            raise ValueError(f"name 1 to {MOST_DOCUMENTS} documents")
        return keys


@dataclass(frozen=True, slots=True)
class GoldenQuestion:
    """A question and the documents that answer it."""

    question: str
    documents: tuple[str, ...]
    """Keys of source objects, or of attachments as ``key#name``."""
    quote: str = ""
    """Text that a passage must contain (ignoring white space) to count as a hit; empty: any passage does."""


@dataclass(frozen=True, slots=True)
class InvalidLine:
    """A skipped line and the reason; line 0 is a whole file."""

    file: str
    line: int
    problem: str


@dataclass(frozen=True, slots=True)
class GoldenSet:
    """The golden questions of a shard, and the lines that were skipped."""

    questions: tuple[GoldenQuestion, ...] = ()
    invalid: tuple[InvalidLine, ...] = ()


def read_golden(source: Source, shard: Shard) -> GoldenSet:
    """Read the shard's golden questions in the order of the files' keys.

    Raises `SourceUnavailable`; problems of single files and lines are in the result.
    """
    questions: list[GoldenQuestion] = []
    invalid: list[InvalidLine] = []
    listed = (entry for page in source.pages(f"{shard.key}/{GOLDEN_FOLDER}/") for entry in page)
    files = [
        entry
        for entry in islice(listed, _MOST_OBJECTS)
        if entry.key.endswith(".jsonl") and golden_shard_of(entry.key) == shard
    ]
    for number, entry in enumerate(files):
        if number == MOST_FILES:
            invalid.append(InvalidLine(entry.key, 0, f"this and all further files are ignored (limit {MOST_FILES})"))
            break
        data = _fetch(source, entry)
        if isinstance(data, InvalidLine):
            invalid.append(data)
            continue
        for line, found in parse_lines(data, shard):
            if isinstance(found, str):
                invalid.append(InvalidLine(entry.key, line, found))
                if len(invalid) >= MOST_INVALID:
                    invalid.append(InvalidLine(entry.key, line, f"further lines are ignored (limit {MOST_INVALID})"))
                    return GoldenSet(tuple(questions), tuple(invalid))
            elif len(questions) == MOST_QUESTIONS:
                problem = f"this and all further questions are ignored (limit {MOST_QUESTIONS} per shard)"
                return GoldenSet(tuple(questions), (*invalid, InvalidLine(entry.key, line, problem)))
            else:
                questions.append(found)
    return GoldenSet(tuple(questions), tuple(invalid))


def parse_lines(data: bytes, shard: Shard) -> Iterator[tuple[int, GoldenQuestion | str]]:
    """Yield the number and the question of each line that is not blank, or the problem of an invalid line."""
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            yield number, _parsed(line, shard)


def _parsed(line: bytes, shard: Shard) -> GoldenQuestion | str:
    try:
        written = _Line.model_validate_json(line)
    except ValidationError as error:
        return first_problem(error, depth=2)[:200]
    keys: list[str] = []
    for named in written.document:
        key = named if named.startswith(f"{shard.key}/") else f"{shard.key}/{named}"
        if shard_of(key) != shard or _CONTROL.search(key) or len(key.encode()) > _MOST_KEY_BYTES:
            return f"document: {named[:80]!r} cannot be a document of this shard"
        keys.append(key)
    return GoldenQuestion(written.question, tuple(dict.fromkeys(keys)), written.quote or "")


def _fetch(source: Source, entry: SourceObject) -> bytes | InvalidLine:
    too_large = InvalidLine(entry.key, 0, f"ignored: more than {MOST_BYTES} bytes")
    if entry.size > MOST_BYTES:
        return too_large
    try:
        data = source.fetch(entry.key).data
    except ObjectGone:
        return InvalidLine(entry.key, 0, "deleted before it was read")
    except ObjectUnreadable as error:
        return InvalidLine(entry.key, 0, str(error)[:200])
    return too_large if len(data) > MOST_BYTES else data
