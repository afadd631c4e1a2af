"""The documents of the trace: a copy of some shards of the corpus, and changes that touch a hundredth of them.

A change revises a key sentence, adds a paragraph, or takes a document away. What each key sentence reads now is known
here, without looking into any table.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.trace.questions import Base

_OF_TEN_REVISED = 6
_OF_TEN_EXTENDED = 3


class Documents:
    """A source folder that changes."""

    def __init__(self, folder: Path, bases: Iterable[Base], seed: int) -> None:
        self._folder = folder
        self._draw = random.Random(seed)
        self._changes = 0
        self._of: dict[Path, list[int]] = {}
        self.readings: dict[int, list[str]] = {}
        """By base question, all readings that its key sentence ever had, the present one last."""
        self.gone: set[int] = set()
        """Base questions whose document was taken away."""
        for base in bases:
            if base.key is not None:
                self.readings[base.number] = [base.key]
                self._of.setdefault(folder / base.shard / base.source, []).append(base.number)

    def current(self, number: int) -> str | None:
        """How the key sentence of a base question reads now; None where there is none (any more)."""
        readings = self.readings.get(number)
        return None if readings is None or number in self.gone else readings[-1]

    def paths(self) -> list[Path]:
        """All documents."""
        return sorted(path for path in self._folder.rglob("*") if path.is_file())

    def change(self, share: float = 0.01) -> tuple[int, list[str]]:
        """Change so many of the documents; says how many and gives the keys of their shards."""
        paths = self.paths()
        touched = self._draw.sample(paths, max(1, round(share * len(paths))))
        for path in touched:
            self._changes += 1
            kind = self._draw.randrange(10)
            numbers = [number for number in self._of.get(path, []) if number not in self.gone]
            if kind < _OF_TEN_REVISED and self._revised(path, numbers):
                continue
            if kind < _OF_TEN_REVISED + _OF_TEN_EXTENDED or kind < _OF_TEN_REVISED:
                text = path.read_text("utf-8")
                path.write_text(
                    f"{text.rstrip()}\n\nNote {self._changes}: this page was looked through again.\n", "utf-8"
                )
            else:
                path.unlink()
                self.gone.update(numbers)
        keys = {"/".join(path.relative_to(self._folder).parts[:2]) for path in touched}
        return len(touched), sorted(keys)

    def _revised(self, path: Path, numbers: Sequence[int]) -> bool:
        """Have one of the key sentences of a document read otherwise, where one stands there in one line."""
        text = path.read_text("utf-8")
        for number in self._draw.sample(numbers, len(numbers)):
            reading = self.readings[number][-1]
            if text.count(reading) == 1:
                revised = f"{reading[:-1]}, as revised in change {self._changes}{reading[-1]}"
                path.write_text(text.replace(reading, revised), "utf-8")
                self.readings[number].append(revised)
                return True
        return False


def copied(data: Path, folder: Path, shards: Sequence[str]) -> None:
    """Copy shards of the corpus."""
    shutil.rmtree(folder, ignore_errors=True)
    for key in shards:
        shutil.copytree(data / "bucket" / key, folder / key)
