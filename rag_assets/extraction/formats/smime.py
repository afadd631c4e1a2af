"""The content of opaque signed messages (S/MIME), without checking the signature.

The message is wrapped in a structure (CMS SignedData, RFC 5652) in the binary encoding BER: every value has a tag, a
length and a content, which may be values again.
"""

from dataclasses import dataclass
from typing import Final

_SIGNED_DATA: Final = bytes.fromhex("2a864886f70d010702")
_OCTETS: Final = 0x04
_CONSTRUCTED_OCTETS: Final = 0x24
_MULTIPLE_BYTES: Final = 0x1F  # of a tag
_INDEFINITE: Final = 0x80  # the length of a value that ends with two zeros
_MAX_LENGTH_BYTES: Final = 8
_MAX_VALUES: Final = 200_000
_MAX_DEPTH: Final = 20


def signed_content(data: bytes) -> bytes | None:
    """Return what was signed; None if the data is something else, such as encrypted data, or damaged."""
    reader = _Reader(data)
    try:
        kind, wrapped = reader.children(reader.value_at(0))
        if data[kind.start : kind.end] != _SIGNED_DATA:
            return None
        signed = reader.children(wrapped)[0]
        content = reader.children(reader.children(signed)[2])
        # Of a detached signature, the content is only named.
        return reader.octets(reader.children(content[1])[0]) if len(content) > 1 else None
    except (IndexError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class _Value:
    """Where the content of a value is, and where the next value begins."""

    tag: int
    start: int
    end: int
    following: int


class _Reader:
    """Reads values. Raises ValueError or IndexError if they are damaged, too many or nested too deeply."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._values = 0

    def value_at(self, position: int, depth: int = 0) -> _Value:
        self._values += 1
        tag, length = self._data[position], self._data[position + 1]
        start = position + 2
        if tag & _MULTIPLE_BYTES == _MULTIPLE_BYTES or self._values > _MAX_VALUES or depth > _MAX_DEPTH:
            raise ValueError
        if length == _INDEFINITE:
            end = start
            while self._data[end : end + 2] != b"\0\0":
                end = self.value_at(end, depth + 1).following
            return _Value(tag, start, end, end + 2)
        if length > _INDEFINITE:
            count = length - _INDEFINITE
            if count > _MAX_LENGTH_BYTES:
                raise ValueError
            length = int.from_bytes(self._data[start : start + count])
            start += count
        if start + length > len(self._data):
            raise ValueError
        return _Value(tag, start, start + length, start + length)

    def children(self, value: _Value) -> list[_Value]:
        found: list[_Value] = []
        position = value.start
        while position < value.end:
            found.append(self.value_at(position))
            position = found[-1].following
        return found

    def octets(self, value: _Value, depth: int = 0) -> bytes:
        if value.tag == _OCTETS:
            return self._data[value.start : value.end]
        if value.tag != _CONSTRUCTED_OCTETS or depth > _MAX_DEPTH:
            raise ValueError
        return b"".join(self.octets(child, depth + 1) for child in self.children(value))
