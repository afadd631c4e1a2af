"""What a document format is, and the formats that other installed packages add."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from rag_assets.extraction.document import ExtractedDocument, one_line

FORMATS_GROUP: Final = "rag_shards.formats"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Format:
    """One format: how it is detected and parsed.

    `recognise` detects it by content, `suffixes` (lower case, with dot) by name if no content is recognised. `heading`
    removes the markup of a heading block's text.
    """

    name: str
    media_type: str
    extract: Callable[[bytes], ExtractedDocument]
    recognise: Callable[[bytes], bool] | None = None
    suffixes: frozenset[str] = frozenset()
    heading: Callable[[str], str] = one_line


@dataclass(frozen=True, slots=True)
class InstalledFormats:
    """The formats that the entry points of other packages name."""

    formats: tuple[Format, ...] = ()
    versions: tuple[str, ...] = ()
    """`NAME=VERSION` of each entry point, because another version may read documents differently."""
    failures: tuple[str, ...] = ()
    """A sentence for each entry point that cannot be loaded."""


@cache
def installed_formats() -> InstalledFormats:
    """Load the entry points of `FORMATS_GROUP`, once per process. One that fails is logged and left out."""
    formats: list[Format] = []
    versions: list[str] = []
    failures: list[str] = []
    for entry_point in sorted(entry_points(group=FORMATS_GROUP), key=lambda found: found.name):
        package = "an unknown package" if entry_point.dist is None else entry_point.dist.name
        versions.append(f"{entry_point.name}={'' if entry_point.dist is None else entry_point.dist.version}")
        try:
            formats += _formats_of(entry_point)
        except Exception as error:  # noqa: BLE001  # whatever a plugin raises, the other formats work
            reason = one_line(f"{type(error).__name__}: {error}")
            failure = f"the format plugin {entry_point.name} of {package} cannot be loaded ({reason})"
            _log.warning("%s; update or remove the package", failure)
            failures.append(failure)
    return InstalledFormats(tuple(formats), tuple(versions), tuple(failures))


def _formats_of(entry_point: EntryPoint) -> list[Format]:
    """Return the formats of an entry point: a `Format`, or a function that returns one or several."""
    value: Any = entry_point.load()
    found: Any = value if isinstance(value, Format) else value()
    listed: list[Any] = [found] if isinstance(found, Format) else list(found)
    if not all(isinstance(one, Format) for one in listed):
        raise TypeError(f"{entry_point.value} is neither a Format nor a function that returns formats")
    return [one if one.recognise is None else replace(one, recognise=_Guarded(one.recognise)) for one in listed]


@dataclass(frozen=True, slots=True)
class _Guarded:
    """A plugin's detection, which runs for every document and must not fail for any of them."""

    recognise: Callable[[bytes], bool]

    def __call__(self, data: bytes) -> bool:
        try:
            return self.recognise(data)
        except Exception:  # noqa: BLE001  # see above
            return False
