"""Names of regions, departments and shards: validation, and conversion to keys and table names.

Only this module builds or parses such names; others pass `Shard` around.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from rag_serving.errors import InvalidArgument, InvalidShardName


def pattern_halves(pattern: str) -> tuple[str, str]:
    """Split a shard pattern into its region and department; case-sensitive. Raises `InvalidArgument`."""
    region, slash, department = unicodedata.normalize("NFC", pattern).partition("/")
    if not slash or not region or not department or "/" in department:
        raise InvalidArgument(f"a shard pattern has the form region/department, such as oslo/*, not {pattern[:80]!r}")
    return region, department


MAX_SEGMENT_CHARACTERS = 64
MAX_TABLE_NAME = 200  # bytes; file systems stop at 255 and Lance appends a suffix

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_EXTRA = frozenset(" -_.&+()@,:'’\u200c\u200d")
"""Besides letters, marks and digits. The last two join or separate letters in Persian and Indian scripts."""
_ESCAPE = re.compile(r"_([0-9a-f]{2})")
_ENCODED = re.compile(r"(?:[a-z0-9-]|_[0-9a-f]{2})+")


@dataclass(frozen=True, slots=True, order=True)
class Shard:
    """All documents of one region and department.

    Both names have up to 64 characters: letters, marks, joiners and digits of any script, space and ``- _ . & + ( ) @
    , : ' ’``. They must not contain ``..``, or start or end with a space or dot. Anything else raises
    `InvalidShardName`, because names become paths, table names, filters, partition keys and cache tags.
    """

    region: str
    department: str

    def __post_init__(self) -> None:
        _validate("region", self.region)
        _validate("department", self.department)
        if len(self.table_name) > MAX_TABLE_NAME:
            raise InvalidShardName(
                f"the names of shard {self.key!r} are too long together: {len(self.table_name)} bytes encoded "
                f"(limit {MAX_TABLE_NAME}); shorten one of the two folders"
            )

    @property
    def key(self) -> str:
        """``region/department``, the partition key and the prefix of the shard's objects."""
        return f"{self.region}/{self.department}"

    @property
    def table_name(self) -> str:
        """A reversible name of ``[a-z0-9_.-]``, safe on file systems that ignore case."""
        return f"{_encode(self.region)}.{_encode(self.department)}"

    def __str__(self) -> str:
        return self.key

    @classmethod
    def parse(cls, key: str) -> Self:
        """Parse ``region/department``; raises `InvalidShardName`."""
        region, slash, department = key.partition("/")
        if not slash or "/" in department:
            raise InvalidShardName(f"{_shown(key)} is not a shard: write region/department, for example london/people")
        return cls(region, department)

    @classmethod
    def from_table_name(cls, name: str) -> Self:
        """Parse a `table_name`; raises `InvalidShardName`."""
        region, dot, department = name.partition(".")
        if not dot or not _ENCODED.fullmatch(region) or not _ENCODED.fullmatch(department):
            raise InvalidShardName(f"{_shown(name)} is not the table name of a shard")
        shard = cls(_decode(region), _decode(department))
        if shard.table_name != name:
            raise InvalidShardName(f"{_shown(name)} is not the table name of a shard; {shard} has {shard.table_name}")
        return shard


def same_name(left: str, right: str) -> bool:
    """Return whether two names are equal in NFC: composed and decomposed accents are equal, case is significant."""
    return unicodedata.normalize("NFC", left) == unicodedata.normalize("NFC", right)


def check_name(kind: str, name: str) -> None:
    """Raise `InvalidShardName` unless `name` may be a `kind` ("region" or "department")."""
    _validate(kind, name)


def check_names(kind: str, names: Iterable[str] | None) -> tuple[str, ...] | None:
    """Return the validated names of a scope (None: all); raises `InvalidArgument` or `InvalidShardName`."""
    if names is None:
        return None
    if isinstance(names, str):
        raise InvalidArgument(f"{kind}s must be a list of names, not a string: write [{_shown(names)}]")
    chosen = tuple(names)
    for name in chosen:
        check_name(kind, name)
    if not chosen:
        raise InvalidArgument(f"the list of {kind}s is empty; omit it to search all of them")
    return chosen


def _validate(kind: str, name: str) -> None:
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers may be untyped
        raise InvalidShardName(f"a {kind} must be a string, not {type(name).__name__}")
    if not name:
        raise InvalidShardName(f"the {kind} is empty; documents belong under region/department/")
    if len(name) > MAX_SEGMENT_CHARACTERS:
        raise InvalidShardName(
            f"the {kind} {_shown(name)} has {len(name)} characters (limit {MAX_SEGMENT_CHARACTERS}); shorten it"
        )
    bad = sorted({c for c in name if not (c in _EXTRA or unicodedata.category(c)[0] in "LMN")})
    if bad:
        listed = " ".join(_shown(c) for c in bad[:5])
        raise InvalidShardName(
            f"the {kind} {_shown(name)} contains {listed}; letters, digits, space and - _ . & + ( ) @ , : ' are allowed"
        )
    if ".." in name or name[0] in " ." or name[-1] in " .":
        raise InvalidShardName(
            f"the {kind} {_shown(name)} must not contain '..', or start or end with a dot or a space"
        )


def _encode(name: str) -> str:
    parts: list[str] = []
    for byte in name.encode():
        character = chr(byte)
        parts.append(character if character in _PLAIN else f"_{byte:02x}")
    return "".join(parts)


def _decode(name: str) -> str:
    raw = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), name).encode("latin-1")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InvalidShardName(f"{_shown(name)} is not the table name of a shard") from None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "…")
