"""Names: what a region and a department may be called, and how a shard is written as key and as table name.

The one place that builds or parses such a name; everything else passes `Shard` around.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from rag_serving.errors import InvalidArgument, InvalidShardName


def pattern_halves(pattern: str) -> tuple[str, str]:
    """A pattern of shards as one of regions and one of departments; raises `InvalidArgument`. Case matters."""
    region, slash, department = unicodedata.normalize("NFC", pattern).partition("/")
    if not slash or not region or not department or "/" in department:
        raise InvalidArgument(f"a pattern of shards is written region/department, as in oslo/*, not {pattern[:80]!r}")
    return region, department


MAX_SEGMENT_CHARACTERS = 64
MAX_TABLE_NAME = 200  # bytes; file systems stop at 255 and Lance appends a suffix

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_EXTRA = frozenset(" -_.&+()@")
_ESCAPE = re.compile(r"_([0-9a-f]{2})")
_ENCODED = re.compile(r"(?:[a-z0-9-]|_[0-9a-f]{2})+")


@dataclass(frozen=True, slots=True, order=True)
class Shard:
    """All documents of one region and department.

    Letters, marks and digits of any script, space and ``- _ . & + ( ) @`` are allowed in both names, up to 64
    characters each; no leading or trailing space or dot, no ``..``. Everything else raises `InvalidShardName`: these
    names become paths, table names, filters, partition keys and cache tags.
    """

    region: str
    department: str

    def __post_init__(self) -> None:
        _validate("region", self.region)
        _validate("department", self.department)
        if len(self.table_name) > MAX_TABLE_NAME:
            raise InvalidShardName(
                f"the names of shard {self.key!r} are too long together: {len(self.table_name)} bytes encoded, "
                f"{MAX_TABLE_NAME} at most; shorten one of the two folders"
            )

    @property
    def key(self) -> str:
        """``region/department``: the partition key, and the prefix of the shard's objects."""
        return f"{self.region}/{self.department}"

    @property
    def table_name(self) -> str:
        """A reversible name of ``[a-z0-9_.-]`` only, so that case survives on file systems that fold it."""
        return f"{_encode(self.region)}.{_encode(self.department)}"

    def __str__(self) -> str:
        return self.key

    @classmethod
    def parse(cls, key: str) -> Shard:
        """Read ``region/department``; raises `InvalidShardName`."""
        region, slash, department = key.partition("/")
        if not slash or "/" in department:
            raise InvalidShardName(f"{_shown(key)} is not a shard: write region/department, for example london/people")
        return cls(region, department)

    @classmethod
    def from_table_name(cls, name: str) -> Shard:
        """The inverse of `table_name`; raises `InvalidShardName`."""
        region, dot, department = name.partition(".")
        if not dot or not _ENCODED.fullmatch(region) or not _ENCODED.fullmatch(department):
            raise InvalidShardName(f"{_shown(name)} is not the table name of a shard")
        shard = cls(_decode(region), _decode(department))
        if shard.table_name != name:
            raise InvalidShardName(f"{_shown(name)} is not the table name of a shard; {shard} has {shard.table_name}")
        return shard


def same_name(left: str, right: str) -> bool:
    """Whether two names look the same to a person: composed and decomposed accents are equal, case is not."""
    return unicodedata.normalize("NFC", left) == unicodedata.normalize("NFC", right)


def check_name(kind: str, name: str) -> None:
    """Raise `InvalidShardName` unless `name` may be a `kind` ("region" or "department")."""
    _validate(kind, name)


def check_names(kind: str, names: Iterable[str] | None) -> tuple[str, ...] | None:
    """Names that narrow a scope; None stands for all. Raises `InvalidArgument` and `InvalidShardName`."""
    if names is None:
        return None
    if isinstance(names, str):
        raise InvalidArgument(f"{kind}s must be a list of names, not one string: write [{_shown(names)}]")
    chosen = tuple(names)
    for name in chosen:
        check_name(kind, name)
    if not chosen:
        raise InvalidArgument(f"the list of {kind}s is empty; leave it out to search all of them")
    return chosen


def _validate(kind: str, name: str) -> None:
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers may be untyped
        raise InvalidShardName(f"a {kind} must be a string, not {type(name).__name__}")
    if not name:
        raise InvalidShardName(f"the {kind} is empty; documents belong under region/department/")
    if len(name) > MAX_SEGMENT_CHARACTERS:
        raise InvalidShardName(
            f"the {kind} {_shown(name)} has {len(name)} characters; {MAX_SEGMENT_CHARACTERS} at most"
        )
    bad = sorted({c for c in name if not (c in _EXTRA or unicodedata.category(c)[0] in "LMN")})
    if bad:
        listed = " ".join(_shown(c) for c in bad[:5])
        raise InvalidShardName(
            f"the {kind} {_shown(name)} holds {listed}; letters, digits, space and - _ . & + ( ) @ are allowed"
        )
    if ".." in name or name[0] in " ." or name[-1] in " .":
        raise InvalidShardName(f"the {kind} {_shown(name)} may not hold '..' nor begin or end with a dot or a space")


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
