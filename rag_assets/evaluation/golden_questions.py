"""Golden questions: how a shard's are written, and reading them. They lie beside the documents and are untrusted.

``region/department/_eval/*.jsonl`` holds one JSON object a line: a question, the document or documents that answer it,
and, if wanted, a quote that a passage must contain to count as found. What cannot be read is named, and left out.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, field_validator

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
"""Of one file."""
MOST_QUESTIONS = 200
"""Of one shard. Each costs an embedding and, on a shard that changed, four searches."""
MOST_CHARACTERS = 1_000
_MOST_KEY_BYTES = 1024  # S3's own bound
MOST_DOCUMENTS = 10
MOST_INVALID = 200
"""Lines that are wrong, after which the rest of a shard's files is not read: they hold something else."""
_MOST_OBJECTS = 1_000
"""Objects of the folder that are looked at to find those files."""

_Key = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=_MOST_KEY_BYTES)]
_Question = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MOST_CHARACTERS)]
_Quote = Annotated[str, StringConstraints(strip_whitespace=True, max_length=MOST_CHARACTERS)]
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class _Line(BaseModel):
    """One line as it is written. Further fields are the author's own."""

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
    """A question, and where its answer is."""

    question: str
    documents: tuple[str, ...]
    """Keys of source objects, ``#`` and a name appended for something attached to one."""
    quote: str = ""
    """What a passage must contain to be the answer, white space being all one; any passage without one."""


@dataclass(frozen=True, slots=True)
class InvalidLine:
    """A line that is not read, or with line 0 a whole file, and why."""

    file: str
    line: int
    problem: str


@dataclass(frozen=True, slots=True)
class GoldenSet:
    """What a shard's files came to."""

    questions: tuple[GoldenQuestion, ...] = ()
    invalid: tuple[InvalidLine, ...] = ()


def read_golden(source: Source, shard: Shard) -> GoldenSet:
    """The shard's golden questions, file by file in the order of their keys.

    Lists the shard's folder of them and nothing else. Raises `SourceUnavailable` when the source does not answer;
    whatever is wrong with a file or a line is in the result.
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
            invalid.append(InvalidLine(entry.key, 0, f"not read, nor those after it: {MOST_FILES} files at most"))
            break
        data = _fetch(source, entry)
        if isinstance(data, InvalidLine):
            invalid.append(data)
            continue
        for line, found in parse_lines(data, shard):
            if isinstance(found, str):
                invalid.append(InvalidLine(entry.key, line, found))
                if len(invalid) >= MOST_INVALID:
                    return GoldenSet(
                        tuple(questions), (*invalid, InvalidLine(entry.key, line, "what follows is not read"))
                    )
            elif len(questions) == MOST_QUESTIONS:
                problem = f"not read, nor what follows: {MOST_QUESTIONS} questions a shard at most"
                return GoldenSet(tuple(questions), (*invalid, InvalidLine(entry.key, line, problem)))
            else:
                questions.append(found)
    return GoldenSet(tuple(questions), tuple(invalid))


def parse_lines(data: bytes, shard: Shard) -> Iterator[tuple[int, GoldenQuestion | str]]:
    """Number and content of each line that is not blank; for a line that is wrong, what is wrong with it."""
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
    too_large = InvalidLine(entry.key, 0, f"more than {MOST_BYTES} bytes, not read")
    if entry.size > MOST_BYTES:
        return too_large
    try:
        data = source.fetch(entry.key).data
    except ObjectGone:
        return InvalidLine(entry.key, 0, "deleted while it was read")
    except ObjectUnreadable as error:
        return InvalidLine(entry.key, 0, str(error)[:200])
    return too_large if len(data) > MOST_BYTES else data
