"""Make a million passages of real text, with a vector for each.

Texts are split into sentences and lines, and these are grouped into runs, repeatedly until there are enough passages:
first into runs of four, then of three, of five and so on, and then again from the second sentence on. Each pass splits
a text without overlaps, like the pipeline, so passages within a shard hardly overlap. Across shards a sentence occurs
again with other neighbours, as texts of a company recur in its departments. No passage occurs twice.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    import numpy.typing as npt
    from tokenizers import Tokenizer

    from rag_assets.chunking.static_vectors import StaticVectors

    Vectors = npt.NDArray[np.float32]

LENGTHS = (4, 3, 5, 2, 6, 7, 8, 1)
"""Sentences per passage, in the order of the passes."""
_LEAST_CHARACTERS = 30
"""Shorter sentences and lines are joined with the next one."""
_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
_CUT_AT_ONCE = 50_000

SCHEMA = pa.schema(
    [
        pa.field("document", pa.int32()),
        pa.field("start", pa.int32()),
        pa.field("end", pa.int32()),
        pa.field("tokens", pa.int32()),
        pa.field("text", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Text:
    """One document."""

    key: str
    text: str


def read_texts(data: Path, limit: int | None = None) -> list[Text]:
    """Read handbook pages, SQuAD's articles, SciFact's abstracts and Chroma's corpora, ordered by a hash.

    `limit` is the maximum number of texts.
    """
    found = [*_pages(data / "bucket", limit), *_articles(data / "eval"), *_abstracts(data / "eval", limit)]
    found += [
        Text(f"chunking/{path.name}", path.read_text("utf-8"))
        for path in sorted((data / "eval" / "chunking" / "corpora").glob("*.md"))
    ]
    found.sort(key=lambda text: hashlib.sha256(text.key.encode()).digest())
    return found[:limit]


def _pages(bucket: Path, limit: int | None) -> Iterator[Text]:
    from rag_assets.extraction.errors import ExtractionError
    from rag_assets.extraction.registry import read_object

    for path in sorted(bucket.rglob("*"))[:limit]:
        if path.is_file():
            key = path.relative_to(bucket).as_posix()
            try:
                yield Text(f"bucket/{key}", read_object(path.read_bytes(), key).parts[0].document.text)
            except ExtractionError:  # a page without text
                continue


def _articles(folder: Path) -> Iterator[Text]:
    for article in json.loads((folder / "squad" / "dev-v2.0.json").read_text("utf-8"))["data"]:
        yield Text(f"squad/{article['title']}", "\n".join(one["context"] for one in article["paragraphs"]))


def _abstracts(folder: Path, limit: int | None) -> Iterator[Text]:
    for line in (folder / "scifact" / "corpus.jsonl").read_text("utf-8").splitlines()[:limit]:
        record = json.loads(line)
        yield Text(f"scifact/{record['_id']}", f"{record['title']}\n{record['text']}")


def sentences(text: str) -> list[tuple[int, int]]:
    """Return the spans ``(start, end)`` of sentences and lines in characters, without surrounding whitespace."""
    spans: list[tuple[int, int]] = []
    begin = 0
    for end in [*(match.start() for match in _END.finditer(text)), len(text)]:
        piece = text[begin:end]
        kept = piece.strip()
        last = end == len(text)
        if kept and (len(kept) >= _LEAST_CHARACTERS or last):
            start = begin + len(piece) - len(piece.lstrip())
            spans.append((start, start + len(kept)))
            begin = end
    return spans


def runs(count: int, length: int, offset: int) -> list[tuple[int, int]]:
    """Split `count` items into runs ``[first, behind)`` of `length` items, the first one of `offset` items."""
    bounds = [0, *range(offset or length, count, length), count]
    return [(first, behind) for first, behind in pairwise(bounds) if first < behind]


def cuttings() -> Iterator[tuple[int, int]]:
    """Yield the distinct pairs of length and offset of the passes."""
    for offset in range(max(LENGTHS)):
        for length in LENGTHS:
            if offset < length:
                yield length, offset


def cut(
    texts: Sequence[Text], count: int, tokenizer: Tokenizer, vectors: StaticVectors
) -> Iterator[tuple[pa.RecordBatch, Vectors]]:
    """Yield the first `count` passages with their static vectors, in batches; fewer if the texts run out."""
    spans = [sentences(text.text) for text in texts]
    pieces = [text.text[start:end] for text, own in zip(texts, spans, strict=True) for start, end in own]
    encoded = [
        np.array(one.ids, np.int64)
        for at in range(0, len(pieces), _CUT_AT_ONCE)
        for one in tokenizer.encode_batch_fast(pieces[at : at + _CUT_AT_ONCE], add_special_tokens=False)
    ]
    ids = np.concatenate(encoded)
    starts_of = np.concatenate([[0], np.cumsum([len(one) for one in encoded])])
    first_of = np.concatenate([[0], np.cumsum([len(own) for own in spans])])
    seen: set[bytes] = set()
    for length, offset in cuttings():
        rows: list[tuple[int, int, int, int, str]] = []
        starts: list[int] = []
        fresh: list[int] = []
        for number, (text, own) in enumerate(zip(texts, spans, strict=True)):
            for first, behind in runs(len(own), length, offset):
                begin, end = (int(starts_of[first_of[number] + at]) for at in (first, behind))
                passage = text.text[own[first][0] : own[behind - 1][1]]
                name = hashlib.blake2b(passage.casefold().encode(), digest_size=12).digest()
                if name not in seen and end > begin:
                    seen.add(name)
                    fresh.append(len(starts))
                    rows.append((number, own[first][0], own[behind - 1][1], end - begin, passage))
                starts.append(begin)
        units = vectors.units(ids, np.array(starts, np.int64))[fresh]
        taken = min(count, len(rows))
        for at in range(0, taken, _CUT_AT_ONCE):
            some = rows[at : min(at + _CUT_AT_ONCE, taken)]
            arrays = [
                pa.array(column, field.type) for column, field in zip(zip(*some, strict=True), SCHEMA, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=SCHEMA), units[at : at + len(some)]
        count -= taken
        if not count:
            return


def embedded(texts: Sequence[str], tokenizer: Tokenizer, vectors: StaticVectors) -> Vectors:
    """Return static unit vectors of the texts, of shape ``(len(texts), dimensions)``."""
    encoded = [one.ids for one in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
    starts = np.concatenate([[0], np.cumsum([len(ids) for ids in encoded])[:-1]]).astype(np.int64)
    return vectors.units(np.concatenate([np.array(ids, np.int64) for ids in encoded]), starts)


def widened(vectors: Vectors, dimensions: int) -> Vectors:
    """Pad the vectors with zeros, which changes no distance; the index rotates them over the full width."""
    wide = np.zeros((len(vectors), dimensions), np.float32)
    wide[:, : vectors.shape[1]] = vectors
    return wide


@dataclass(frozen=True, slots=True)
class Corpus:
    """Passages, their vectors of shape ``(rows, dimensions)``, and the keys of their documents."""

    keys: list[str]
    passages: pa.Table
    vectors: Vectors

    def __len__(self) -> int:
        return len(self.vectors)


def write_corpus(folder: Path, texts: Sequence[Text], batches: Iterator[tuple[pa.RecordBatch, Vectors]]) -> None:
    """Write the corpus to a folder, batch by batch."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = 0
    with (
        pa.OSFile(str(folder / "passages.arrow"), "wb") as file,
        pa.ipc.new_file(file, SCHEMA) as writer,
        (folder / "vectors.f32").open("wb") as raw,
    ):
        dimensions = 0
        for batch, vectors in batches:
            writer.write_batch(batch)
            raw.write(np.ascontiguousarray(vectors).tobytes())
            rows, dimensions = rows + len(vectors), vectors.shape[1]
    facts = {"rows": rows, "dimensions": dimensions, "keys": [text.key for text in texts]}
    (folder / "corpus.json").write_text(json.dumps(facts))


def read_corpus(folder: Path) -> Corpus:
    """Return the corpus of a folder, memory-mapped."""
    facts: dict[str, Any] = json.loads((folder / "corpus.json").read_text())
    passages = pa.ipc.open_file(pa.memory_map(str(folder / "passages.arrow"))).read_all()
    shape = (facts["rows"], facts["dimensions"])
    return Corpus(facts["keys"], passages, np.memmap(folder / "vectors.f32", np.float32, "r", shape=shape))
