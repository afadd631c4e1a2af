"""Look for known documents: by title, file name, a code or an acronym that no other document has.

The items are drawn from the documents themselves; a hash of each divides them into a tuning and a reporting half. A
question is answered if the first hit is from the document that it was drawn from.
"""

from __future__ import annotations

import hashlib
import os
import re
import statistics
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from benchmarks.lakes import build
from benchmarks.reporting import arguments, show

if TYPE_CHECKING:
    from rag_serving.lake.search.query import Mode

MODES: tuple[Mode, ...] = ("hybrid", "text", "vector")
MOST = 200
"""Most items of a kind and half."""
_CODE = re.compile(r"(?<![\w-])(?=[\w-]*\d)[A-Za-z][\w-]{2,28}\w(?![\w-])|(?<![\w-])[a-z]+(?:_[a-z]+)+(?![\w-])")
_WORD = re.compile(r"[a-z]+")
_ACRONYM = re.compile(r"(?<![\w-])[A-Z]{3,6}(?![\w-])")


@dataclass(frozen=True)
class Item:
    """A question for one document."""

    kind: str
    question: str
    key: str

    @property
    def half(self) -> str:
        """The half to which it belongs, by a hash of its document."""
        return "tuning" if hashlib.sha256(self.key.encode()).digest()[0] % 2 else "reporting"


def read_items(bucket: Path) -> list[Item]:
    """Draw the items from the documents of a bucket."""
    from rag_assets.extraction.errors import ExtractionError
    from rag_assets.extraction.registry import read_object

    titles: defaultdict[str, set[str]] = defaultdict(set)
    codes: defaultdict[str, set[str]] = defaultdict(set)
    acronyms: defaultdict[str, set[str]] = defaultdict(set)
    names: defaultdict[str, set[str]] = defaultdict(set)
    words: set[str] = set()
    for path in sorted(bucket.rglob("*.md")):
        key = path.relative_to(bucket).as_posix()
        try:
            document = read_object(path.read_bytes(), key).parts[0].document
        except ExtractionError:
            continue
        titles[document.title].add(key)
        names[PurePosixPath(key).stem].add(key)
        # Addresses are full of codes that nobody looks for.
        text = re.sub(r"\S*(?:://|@|\.(?:com|org|io))\S*|\]\([^)]*\)|<[^>]*>", " ", document.text)
        words.update(_WORD.findall(text))
        for code in set(_CODE.findall(text)):
            codes[code].add(key)
        for acronym in set(_ACRONYM.findall(text)):
            acronyms[acronym].add(key)
    # A word in capitals is no acronym.
    real = {name: keys for name, keys in acronyms.items() if name.lower() not in words}
    drawn = {"title": titles, "file name": names, "code": codes, "acronym": real}
    return [item for kind, found in drawn.items() for item in _items(kind, found)]


def _items(kind: str, found: dict[str, set[str]]) -> Iterator[Item]:
    folded = Counter(name.casefold() for name in found)
    for name, keys in found.items():
        if len(keys) == 1 and folded[name.casefold()] == 1 and len(name) > 2:
            yield Item(kind, _asked(kind, name), next(iter(keys)))


def _asked(kind: str, name: str) -> str:
    if kind == "file name":
        return re.sub(r"[-_]", " ", name)
    return f"What is {name}?" if kind in ("code", "acronym") else name


def draw(items: Sequence[Item], half: str, most: int) -> list[Item]:
    """Return up to `most` items of each kind in a half, in the order of a hash."""
    chosen: list[Item] = []
    ordered = sorted(items, key=lambda item: hashlib.sha256(f"{item.kind}{item.question}".encode()).digest())
    for kind in dict.fromkeys(item.kind for item in items):
        chosen += [item for item in ordered if item.kind == kind and item.half == half][:most]
    return chosen


def measure(lake: str, items: Sequence[Item]) -> list[dict[str, object]]:
    """Return one row per kind and way to search, with the share of first hits (and of the first three)."""
    from rag_serving import AsyncRagClient, RagClient
    from rag_serving.settings import ServingSettings

    places: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    settings = ServingSettings.from_env().model_copy(update={"lake_uri": lake, "llm_model": None})
    with RagClient(lambda: AsyncRagClient(settings)) as client:
        for item in items:
            for mode in MODES:
                hits = client.search(item.question, mode=mode, k=10)
                same = [
                    hit.rank for hit in hits if any(source.endswith(item.key) for source in (hit.source, *hit.also_in))
                ]
                places[item.kind, mode].append(min(same, default=11))
    return [
        {
            "item": kind,
            "search": mode,
            "count": len(found),
            "hit@1": f"{statistics.fmean(place == 1 for place in found):.3f}",
            "hit@3": f"{statistics.fmean(place <= 3 for place in found):.3f}",
        }
        for (kind, mode), found in places.items()
    ]


def main(argv: Sequence[str]) -> None:
    """Index the bucket unless a lake of it is given, ask for the items and print the shares."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--lake", help="a lake that has the bucket of RAG_TEST_DATA already")
    parser.add_argument("--half", choices=["tuning", "reporting"], default="reporting")
    options = parser.parse_args(argv)
    data = os.environ.get("RAG_TEST_DATA")
    if not data:
        parser.error("needs the test data: set RAG_TEST_DATA to a folder that contains bucket/")
    bucket = Path(data, "bucket")
    items = draw(read_items(bucket), options.half, 10 if options.quick else MOST)
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as scratch:
        lake = options.lake or scratch
        if not options.lake:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                pool.submit(build, str(bucket), lake).result()
        rows = measure(lake, items)
    show(f"known items, {options.half} half", rows, options.json)
