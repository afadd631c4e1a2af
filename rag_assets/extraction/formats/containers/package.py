"""Read the parts of a zip container whose sizes were checked (see `ooxml`)."""

import io
import zipfile
from typing import Final
from xml.etree import ElementTree as ET

from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.formats.ooxml import measure

_ENTITIES: Final = tuple("<!ENTITY".encode(encoding) for encoding in ("utf-8", "utf-16-le", "utf-16-be"))


class Package:
    """A zip container within the limits.

    Raises ExtractionError if it inflates beyond them, is encrypted or damaged.
    """

    def __init__(self, data: bytes) -> None:
        measure(data)
        self._archive = zipfile.ZipFile(io.BytesIO(data))
        self.names = frozenset(self._archive.namelist())

    def read(self, name: str) -> bytes | None:
        """Return the content of a part; None if there is no such part."""
        return self._archive.read(name) if name in self.names else None

    def tree(self, name: str) -> ET.Element | None:
        """Return the root element of an XML part; None if there is no such part."""
        content = self.read(name)
        if content is None:
            return None
        if any(mark in content for mark in _ENTITIES):
            detail = "its XML declares entities, which are never expanded; save the document again"
            raise ExtractionError(QuarantineReason.MALFORMED, detail)
        return ET.fromstring(content)  # noqa: S314  # entities were refused
