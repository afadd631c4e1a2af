"""A digest of a set that can be kept up to date item by item: the sum of the items' hashes, and how many they are."""

from __future__ import annotations

import hashlib
import re

_BITS = 160
_FORM = re.compile(r"(\d{1,18}):([0-9a-f]{40})")


class DigestSum:
    """Equal for equal sets, whatever the order; different otherwise, short of a collision in 160 bits.

    It detects change. It is no defence against somebody who searches for a collision.
    """

    def __init__(self) -> None:
        self.items = 0
        self._sum = 0

    @classmethod
    def parse(cls, text: str) -> DigestSum:
        """Read back `str(digest)`; raises ValueError for anything else."""
        found = _FORM.fullmatch(text)
        if found is None:
            raise ValueError(f"{text[:80]!r} is no digest")
        digest = cls()
        digest.items, digest._sum = int(found[1]), int(found[2], 16)
        return digest

    def add(self, item: str) -> None:
        """Count an item in."""
        self.items += 1
        self._sum = (self._sum + _number(item)) % 2**_BITS

    def remove(self, item: str) -> None:
        """Take out an item that was counted in."""
        self.items -= 1
        self._sum = (self._sum - _number(item)) % 2**_BITS

    def __str__(self) -> str:
        return f"{self.items}:{self._sum:040x}"


def _number(item: str) -> int:
    return int.from_bytes(hashlib.sha256(item.encode()).digest()[: _BITS // 8], "big")
