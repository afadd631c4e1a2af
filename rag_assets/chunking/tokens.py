"""Tokens of a document, from one pass of the model's own tokenizer: how many lie in a stretch of it, and which.

Nothing here knows headings or sentences.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from rag_assets.chunking.boundaries import split_near
from rag_assets.extraction.document import ExtractedDocument

if TYPE_CHECKING:
    import numpy.typing as npt
    from tokenizers import Tokenizer

# A word that the vocabulary does not know is one token however long it is, so tokens alone do not bound a
# passage.
MAX_CHARACTERS_PER_TOKEN: Final = 16

# Texts are tokenised in pieces of at most this many characters, in batches of about this many: memory stays
# flat.
_PIECE_CHARACTERS: Final = 50_000
_BATCH_CHARACTERS: Final = 1_000_000

_SPACES: Final = " \n\t"


class TokenCounter:
    """Counts in the tokens of one model. Works on a copy of the tokenizer, without truncation and padding."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from tokenizers import Tokenizer as TokenizerClass

        self._tokenizer: Tokenizer = TokenizerClass.from_str(tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        description = self._tokenizer.to_str()
        self.special_tokens: int = self._tokenizer.num_special_tokens_to_add(False)
        """Tokens that the model puts around every text."""
        self.vocabulary = hashlib.sha256(description.encode()).hexdigest()[:8]
        """Names the tokenizer: another one cuts elsewhere."""
        self._splits_at_spaces = _splits_at_spaces(json.loads(description))

    def read(self, document: ExtractedDocument) -> DocumentTokens:
        """The tokens of the document's blocks; each block is tokenised once."""
        starts: array[int] = array("q")
        ids: list[int] = []
        pieces: list[tuple[int, int]] = []
        for batch in batches(_pieces(document)):
            texts = [document.text[start:end] for start, end in batch]
            encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
            for (base, _), encoding in zip(batch, encodings, strict=True):
                starts.extend([base + offsets[0] for offsets in encoding.offsets])
                ids += encoding.ids
            pieces += batch
        return DocumentTokens(document.text, starts, np.array(ids, dtype=np.int64), pieces, self._splits_at_spaces)

    def count(self, texts: Sequence[str]) -> list[int]:
        """What the model sees of each text, special tokens included."""
        return [len(encoding) for encoding in self._tokenizer.encode_batch_fast(list(texts))]


class DocumentTokens:
    """Where the tokens of one text begin, ascending, and which they are."""

    def __init__(
        self,
        text: str,
        starts: array[int],
        ids: npt.NDArray[np.int64],
        pieces: Sequence[tuple[int, int]],
        splits_at_spaces: bool,
    ) -> None:
        self.text = text
        self.ids = ids
        self._starts = starts
        self._splits_at_spaces = splits_at_spaces
        self._ends = {end for _, end in pieces}
        # Pieces that touch were tokenised apart, which a text over both of them is not.
        self._joints = [start for start, _ in pieces[1:] if text[start - 1] not in _SPACES]
        self._piece_starts = {start for start, _ in pieces}

    def index(self, offset: int) -> int:
        """The number of the first token that begins at the offset or after it."""
        return bisect_left(self._starts, offset)

    def indexes(self, offsets: Sequence[int]) -> npt.NDArray[np.int64]:
        """The same for many offsets at once."""
        starts = np.frombuffer(self._starts, dtype=np.int64) if self._starts else np.empty(0, dtype=np.int64)
        return starts.searchsorted(np.array(offsets, dtype=np.int64)).astype(np.int64)

    def count(self, start: int, end: int) -> int:
        """How many tokens begin in `text[start:end]`."""
        return bisect_left(self._starts, end) - bisect_left(self._starts, start)

    def after(self, start: int, count: int) -> int:
        """The offset where `count` tokens from `start` on are over."""
        index = bisect_left(self._starts, start) + count
        return self._starts[index] if index < len(self._starts) else len(self.text)

    def is_exact(self, start: int, end: int) -> bool:
        """Whether `count` is certain to be what the tokenizer makes of the stretch alone.

        It is where the tokenizer treats each word by itself and the stretch begins and ends with whole words.
        """
        if not self._splits_at_spaces:
            return False
        text = self.text
        if start not in self._piece_starts and text[start - 1] not in _SPACES:
            return False
        if end < len(text) and text[end] not in _SPACES and end not in self._ends:
            return False
        return bisect_right(self._joints, start) == bisect_left(self._joints, end)


def batches(spans: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """The spans in batches of a bounded number of characters."""
    batch: list[tuple[int, int]] = []
    characters = 0
    for start, end in spans:
        batch.append((start, end))
        characters += end - start
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _pieces(document: ExtractedDocument) -> Iterator[tuple[int, int]]:
    """Spans to tokenise: each block with the white space behind it, which is a token to some vocabularies."""
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
    """Whether a tokenizer of that description makes the same tokens of a word whatever stands before and after it.

    BERT's does: it takes the text apart at white space before anything else looks at it. Of others nothing is assumed.
    """
    parts: list[str] = []
    for name in ("normalizer", "pre_tokenizer", "model"):
        part: dict[str, Any] = description.get(name) or {}
        parts.append(str(part.get("type")))
    added = cast("list[dict[str, Any]]", description.get("added_tokens") or [])
    whole_words = not any(character.isspace() for token in added for character in token["content"])
    return parts == ["BertNormalizer", "BertPreTokenizer", "WordPiece"] and whole_words
