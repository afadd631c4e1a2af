"""The documents of the trace: a copy of some shards of the corpus, and changes to one in a hundred of them.

A change revises a key sentence, adds a paragraph, or removes a document. The current text of every key sentence is
tracked here, independent of any table.
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
        """All versions of the key sentence, the current one last, by base question."""
        self.gone: set[int] = set()
        """Base questions whose document was removed."""
        for base in bases:
            if base.key is not None:
                self.readings[base.number] = [base.key]
                self._of.setdefault(folder / base.shard / base.source, []).append(base.number)

    def current(self, number: int) -> str | None:
        """Return the current key sentence of a base question; None if there is none, or no longer."""
        readings = self.readings.get(number)
        return None if readings is None or number in self.gone else readings[-1]

    def paths(self) -> list[Path]:
        """Return the paths of all documents."""
        return sorted(path for path in self._folder.rglob("*") if path.is_file())

    def change(self, share: float = 0.01) -> tuple[int, list[str]]:
        """Change this share of the documents; return their number and the keys of their shards."""
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
        """Revise one of the document's key sentences that is on one line; return whether there is one."""
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
    """Copy shards of the corpus into a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for key in shards:
        shutil.copytree(data / "bucket" / key, folder / key)
