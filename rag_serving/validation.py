"""Validation of the clients' arguments: questions, counts, filters, histories. Every check raises `InvalidArgument`."""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any, get_args

from pydantic import ValidationError

from rag_serving.errors import InvalidArgument, InvalidQuestion
from rag_serving.lake.search.query import Mode
from rag_serving.results import Turn

MAX_QUESTION_CHARACTERS = 4_000
MAX_K = 100
MAX_PREFIX_CHARACTERS = 1_024
MAX_TENANT_CHARACTERS = 200
MAX_TURNS = 50
MAX_PASSAGES = 500
"""Passages of a document that are returned together."""
MAX_HISTORY_CHARACTERS = 200_000


def validate_question(question: str) -> str:
    """Return the question without unprintable characters and surrounding whitespace; raises `InvalidQuestion`."""
    if not isinstance(question, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers may be untyped
        raise InvalidQuestion(f"the question must be a string, not {type(question).__name__}")
    # Unprintable spaces (no-break, full-width, carriage return) separate words, too.
    spaced = (" " if c.isspace() and c not in "\n\t" else c for c in question)
    text = "".join(c for c in spaced if c in "\n\t" or c.isprintable()).strip()
    if not text:
        raise InvalidQuestion("the question is empty")
    if len(text) > MAX_QUESTION_CHARACTERS:
        raise InvalidQuestion(
            f"the question has {len(text)} characters (limit {MAX_QUESTION_CHARACTERS}); ask it in a sentence or two"
        )
    return text


def validate_k(k: int) -> int:
    """Return `k` if it is an integer from 1 to `MAX_K`."""
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_K:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(f"k must be an integer from 1 to {MAX_K}, not {k!r}")
    return k


def validate_passages(passages: int) -> int:
    """Return `passages` if it is an integer from 1 to `MAX_K`."""
    try:
        return validate_k(passages)
    except InvalidArgument as error:
        raise InvalidArgument(str(error).replace("k ", "passages ", 1)) from None


def validate_per_document(per_document: int | None) -> int | None:
    """Return `per_document` if it is None or an integer from 1 to `MAX_K`."""
    if per_document is not None:
        try:
            validate_k(per_document)
        except InvalidArgument:
            message = f"per_document must be an integer from 1 to {MAX_K} or None, not {per_document!r}"
            raise InvalidArgument(message) from None
    return per_document


def validate_mode(mode: Mode) -> Mode:
    """Return `mode` if it is one of `Mode`."""
    if mode not in get_args(Mode):
        raise InvalidArgument(f"mode must be one of {', '.join(get_args(Mode))}, not {str(mode)[:80]!r}")
    return mode


def validate_prefix(prefix: str | None) -> str | None:
    """Return the prefix without its leading slash; None if it is empty."""
    if prefix is None:
        return None
    if not isinstance(prefix, str) or len(prefix) > MAX_PREFIX_CHARACTERS or not all(map(str.isprintable, prefix)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(
            "path_prefix must be the start of a path below region/department/, such as 'policies/': "
            f"at most {MAX_PREFIX_CHARACTERS} printable characters"
        )
    return prefix.removeprefix("/") or None


def validate_moment(name: str, moment: date | None) -> datetime | None:
    """Convert a time to UTC. A date means midnight; a time without a zone is taken as UTC."""
    if moment is None:
        return None
    if not isinstance(moment, date):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(f"{name} must be a date or a datetime, not {type(moment).__name__}")
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)  # noqa: DTZ001  # the zone follows
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise InvalidArgument(f"{name} is out of range: it cannot be converted to UTC") from None


def validate_tenant(tenant: str) -> str:
    """Return `tenant` if it is a string of 1 to `MAX_TENANT_CHARACTERS` characters."""
    if not isinstance(tenant, str) or not tenant or len(tenant) > MAX_TENANT_CHARACTERS:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(f"tenant must be a string of 1 to {MAX_TENANT_CHARACTERS} characters")
    return tenant


def validate_part(first: int, count: int) -> None:
    """Raise `InvalidArgument` unless these are the first passage of a part of a document and a number of passages."""
    if first < 0 or not 1 <= count <= MAX_PASSAGES:
        raise InvalidArgument(f"first must be 0 or more, and count from 1 to {MAX_PASSAGES}")


def validate_history(history: Sequence[Turn | dict[str, Any]]) -> tuple[Turn, ...]:
    """Return the turns of a conversation, oldest first; they may be given as dicts."""
    if isinstance(history, (str, dict)) or len(history) > MAX_TURNS:
        raise InvalidArgument(f"history must be a list of at most {MAX_TURNS} turns, oldest first")
    try:
        turns = tuple(Turn.model_validate(turn) for turn in history)
    except ValidationError:
        raise InvalidArgument("every turn of the history must have a question and an answer, both strings") from None
    if sum(len(turn.question) + len(turn.answer) for turn in turns) > MAX_HISTORY_CHARACTERS:
        raise InvalidArgument(f"the history has more than {MAX_HISTORY_CHARACTERS} characters; drop the oldest turns")
    return turns
