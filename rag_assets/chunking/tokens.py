"""Count the tokens in any span of a document after a single pass of the model's own tokenizer."""

import hashlib
import json
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from rag_assets.chunking.boundaries import split_near
from rag_assets.extraction.document import ExtractedDocument
from rag_assets.storage.batches import batches

# An unknown word is a single token however long it is, so the number of tokens alone does not limit a passage.
MAX_CHARACTERS_PER_TOKEN: Final = 16

# Texts are tokenised in pieces and batches of limited length, to bound the memory.
_PIECE_CHARACTERS: Final = 50_000
_BATCH_CHARACTERS: Final = 1_000_000
_BATCH_SPANS: Final = 100_000

_SPACES: Final = " \n\t"


class TokenCounter:
    """Counts tokens of one model, with a copy of its tokenizer without truncation and padding."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer: Tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        description = self._tokenizer.to_str()
        self.special_tokens: int = self._tokenizer.num_special_tokens_to_add(False)
        """Tokens that the model adds to every text."""
        self.vocabulary = hashlib.sha256(description.encode()).hexdigest()[:8]
        """Identifies the tokenizer, which determines the cuts."""
        self._splits_at_spaces = _splits_at_spaces(json.loads(description))

    def read(self, document: ExtractedDocument) -> "DocumentTokens":
        """Tokenise the document's blocks, each once."""
        starts: array[int] = array("q")
        ids: list[int] = []
        pieces: list[tuple[int, int]] = []
        for batch in span_batches(_pieces(document)):
            texts = [document.text[start:end] for start, end in batch]
            encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
            for (base, _), encoding in zip(batch, encodings, strict=True):
                starts.extend([base + offsets[0] for offsets in encoding.offsets])
                ids += encoding.ids
            pieces += batch
        return DocumentTokens(document.text, starts, np.array(ids, dtype=np.int64), pieces, self._splits_at_spaces)

    def count(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text, including special tokens."""
        return [len(encoding) for encoding in self._tokenizer.encode_batch_fast(list(texts))]


class DocumentTokens:
    """The tokens of one text and their offsets."""

    def __init__(
        self,
        text: str,
        starts: "array[int]",
        ids: npt.NDArray[np.int64],
        pieces: Sequence[tuple[int, int]],
        splits_at_spaces: bool,
    ) -> None:
        self.text = text
        self.ids = ids
        self._starts = starts
        self._splits_at_spaces = splits_at_spaces
        self._ends = {end for _, end in pieces}
        # Adjacent pieces were tokenised separately, unlike a span over both of them.
        self._joints = [start for start, _ in pieces[1:] if text[start - 1] not in _SPACES]
        self._piece_starts = {start for start, _ in pieces}

    def index(self, offset: int) -> int:
        """Return the index of the first token at the offset or after it."""
        return bisect_left(self._starts, offset)

    def indexes(self, offsets: Sequence[int]) -> npt.NDArray[np.int64]:
        """Return `index` for many offsets."""
        starts = np.frombuffer(self._starts, dtype=np.int64) if self._starts else np.empty(0, dtype=np.int64)
        return starts.searchsorted(np.array(offsets, dtype=np.int64)).astype(np.int64)

    def count(self, start: int, end: int) -> int:
        """Return the number of tokens that begin in `text[start:end]`."""
        return bisect_left(self._starts, end) - bisect_left(self._starts, start)

    def after(self, start: int, count: int) -> int:
        """Return the offset after `count` tokens from `start`."""
        index = bisect_left(self._starts, start) + count
        return self._starts[index] if index < len(self._starts) else len(self.text)

    def is_exact(self, start: int, end: int) -> bool:
        """Return whether the tokenizer would certainly make `count` tokens of the span alone.

        That is so if it tokenises each word separately and the span begins and ends with whole words.
        """
        if not self._splits_at_spaces:
            return False
        text = self.text
        if start not in self._piece_starts and text[start - 1] not in _SPACES:
            return False
        if end < len(text) and text[end] not in _SPACES and end not in self._ends:
            return False
        return bisect_right(self._joints, start) == bisect_left(self._joints, end)


def span_batches(spans: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Yield the spans in batches with a limited number of characters."""
    return batches(spans, _BATCH_SPANS, weigh=lambda span: span[1] - span[0], most_weight=_BATCH_CHARACTERS)


def _pieces(document: ExtractedDocument) -> Iterator[tuple[int, int]]:
    """Yield the spans to tokenise: each block with the white space after it, which has tokens in some vocabularies."""
    text, blocks = document.text, document.blocks
    for index, block in enumerate(blocks):
        start = block.start
        end = blocks[index + 1].start if index + 1 < len(blocks) else block.end
        while end - start > _PIECE_CHARACTERS:
            cut = split_near(text, start, start + _PIECE_CHARACTERS)
            yield start, cut
            start = cut
        yield start, end


def _splits_at_spaces(description: dict[str, Any]) -> bool:
    """Return whether the tokenizer makes the same tokens of a word independently of the text around it.

    BERT's does, because it splits the text at white space first. Other tokenizers are not trusted to.
    """
    parts: list[str] = []
    for name in ("normalizer", "pre_tokenizer", "model"):
        part: dict[str, Any] = description.get(name) or {}
        parts.append(str(part.get("type")))
    added = cast("list[dict[str, Any]]", description.get("added_tokens") or [])
    whole_words = not any(character.isspace() for token in added for character in token["content"])
    return parts == ["BertNormalizer", "BertPreTokenizer", "WordPiece"] and whole_words
