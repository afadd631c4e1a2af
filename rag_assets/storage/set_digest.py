"""A digest of a set that is updated item by item: the number of items and the sum of their hashes."""

import hashlib
import re
from typing import Self

_BITS = 160
_FORM = re.compile(r"(\d{1,18}):([0-9a-f]{40})")


class DigestSum:
    """Equal for equal sets in any order, otherwise different unless 160-bit sums collide.

    It detects changes; it is not secure against an attacker who searches for a collision.
    """

    def __init__(self) -> None:
        self.items = 0
        self._sum = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `str(digest)`; raise ValueError for anything else."""
        found = _FORM.fullmatch(text)
        if found is None:
            raise ValueError(f"{text[:80]!r} is not a digest")
        digest = cls()
        digest.items, digest._sum = int(found[1]), int(found[2], 16)
        return digest

    def add(self, item: str) -> None:
        """Add an item."""
        self.items += 1
        self._sum = (self._sum + _number(item)) % 2**_BITS

    def remove(self, item: str) -> None:
        """Remove an item that was added before."""
        self.items -= 1
        self._sum = (self._sum - _number(item)) % 2**_BITS

    def __str__(self) -> str:
        return f"{self.items}:{self._sum:040x}"


def _number(item: str) -> int:
    return int.from_bytes(hashlib.sha256(item.encode()).digest()[: _BITS // 8], "big")
