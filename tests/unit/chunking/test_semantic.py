"""Semantic chunking: hard limits, structure before subject, no text lost, and the same result for equal documents."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rag_assets.chunking.options import ChunkerOptions, make_chunker
from rag_assets.chunking.passage import Passage
from rag_assets.chunking.semantic import CutCosts, SemanticChunker
from rag_assets.chunking.static_vectors import StaticVectors
from rag_assets.chunking.structure import StructureChunker
from rag_assets.chunking.tokens import TokenCounter
from rag_assets.extraction.document import Block, BlockKind, ExtractedDocument
from rag_assets.extraction.errors import ExtractionError
from tests.documents import extract
from tests.unit.chunking.test_structure import (
    SENTENCE,
    STRUCTURED_TEXT,
    assert_passages_hold_the_text,
    count,
    markdown,
    model_tokenizer,
)

LEAVE = "Parents take leave of forty weeks after a birth. "
PUMPS = "The pump stops when its valve is blocked by ice. "
SUBJECTS = ("parents take leave weeks birth after", "pump stops when valve blocked ice its")


@cache
def vectors() -> StaticVectors:
    """Vectors of two subjects: one axis for the words of each, zero for all other words."""
    tokenizer = model_tokenizer()
    matrix = np.zeros((tokenizer.get_vocab_size(), 4), np.float16)
    for axis, words in enumerate(SUBJECTS):
        for word in words.split():
            matrix[tokenizer.token_to_id(word), axis] = 1
    return StaticVectors(matrix, "0" * 64)


@cache
def chunker(max_tokens: int = 128, min_tokens: int = 16, context: str = "none") -> SemanticChunker:
    return SemanticChunker(
        model_tokenizer(),
        vectors(),
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        window=256 if context != "none" else None,
        context=context,  # pyright: ignore[reportArgumentType]
    )


@given(
    STRUCTURED_TEXT.map("\n\n".join),
    st.sampled_from(["a.md", "a.txt"]),
    st.sampled_from([(32, 0), (32, 16), (64, 32), (256, 64)]),
)
@example("# " + "word " * 400 + "\n\n# " + "x" * 5000, "a.md", (32, 16))
@example("# A\n\n" + "\n" * 5000 + "b", "a.md", (32, 16))
@example("a. B. " * 3000, "a.txt", (64, 32))
def test_every_passage_fits_the_limit_and_together_they_hold_the_whole_text(
    source: str, key: str, window: tuple[int, int]
) -> None:
    try:
        document = extract(source.encode("utf-8", errors="replace"), key)
    except ExtractionError:
        return
    assert_passages_hold_the_text(document, chunker(*window).chunk(document), window[0])


@given(STRUCTURED_TEXT.map("\n\n".join), st.sampled_from(["headings", "neighbours"]))
@example("x" * 3000, "neighbours")
@example("# " + "Long heading " * 90 + "\n\n" + SENTENCE * 30, "headings")
def test_context_counts_towards_the_window_and_is_not_part_of_the_text(source: str, context: str) -> None:
    try:
        document = extract(source.encode("utf-8", errors="replace"), "a.md")
    except ExtractionError:
        return
    plain = chunker(64, 16).chunk(document)
    passages = chunker(64, 16, context).chunk(document)
    assert [passage.text for passage in passages] == [passage.text for passage in plain]
    for passage in passages:
        assert passage.tokens == count(passage.embedded_text) <= 256
        assert passage.embedded_text == passage.context + passage.text


@given(STRUCTURED_TEXT.map("\n\n".join))
def test_chunking_does_not_depend_on_previously_chunked_documents(source: str) -> None:
    try:
        document = extract(source.encode("utf-8", errors="replace"), "a.md")
    except ExtractionError:
        return
    fresh = SemanticChunker(model_tokenizer(), vectors(), max_tokens=64, min_tokens=16)
    expected = fresh.chunk(document)
    fresh.chunk(markdown("# Another\n\n" + LEAVE * 40))
    assert fresh.chunk(document) == expected == chunker(64, 16).chunk(document)


@given(
    st.lists(st.sampled_from([LEAVE.strip(), PUMPS.strip(), SENTENCE.strip(), "Short.", SENTENCE * 6]), min_size=1),
    st.sampled_from([(64, 16), (128, 32)]),
)
def test_a_passage_below_the_minimum_joins_its_neighbour_if_both_fit(
    paragraphs: list[str], window: tuple[int, int]
) -> None:
    document = extract("\n\n".join(paragraphs).encode(), "a.txt")
    passages = chunker(*window).chunk(document)
    for one, other in pairwise(passages):
        if min(one.tokens, other.tokens) < window[1]:
            assert count(document.text[one.start : other.end]) > window[0]


def test_a_text_is_cut_where_its_subject_changes() -> None:
    for leading in range(3, 8):
        document = extract((LEAVE * leading + PUMPS * (10 - leading)).encode(), "a.txt")
        passages = chunker(128, 16).chunk(document)
        assert not [passage for passage in passages if "Parents" in passage.text and "pump" in passage.text]


def test_text_is_cut_between_blocks_rather_than_inside_them() -> None:
    paragraphs = [SENTENCE * 3] * 8
    passages = chunker(128, 16).chunk(markdown("\n\n".join(paragraphs)))
    assert all(part.strip() == (SENTENCE * 3).strip() for passage in passages for part in passage.text.split("\n\n"))


def test_a_heading_never_ends_a_passage_if_text_follows_it() -> None:
    for length in range(10, 60, 3):
        for following in (SENTENCE * 4, "| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * 9, "- an item of a list\n" * 20):
            source = f"# Top\n\n{'word ' * length}\n\n## Sub\n\n### Subsub\n\n{following}\n\n## Next\n\nwords"
            document = markdown(source)
            headings = {block.end for block in document.blocks if block.kind is BlockKind.HEADING}
            passages = chunker(64).chunk(document)
            assert_passages_hold_the_text(document, passages, 64)
            assert not [passage for passage in passages if passage.end in headings]


def test_a_lead_in_line_stays_with_its_list() -> None:
    items = "\n".join(["- a short item"] * 4)
    for length in range(20, 60):
        passages = chunker(64, 0).chunk(markdown(f"{'word ' * length}\n\nBring the following:\n\n{items}"))
        (leading,) = [passage for passage in passages if "following:" in passage.text]
        assert "- a short item" in leading.text


@given(st.lists(st.sampled_from(["table", "code", SENTENCE * 2, "Short.", LEAVE * 3]), min_size=1, max_size=12))
def test_tables_and_code_blocks_that_fit_are_not_split(kinds: list[str]) -> None:
    wholes = {
        "table": "| a | b |\n|---|---|\n| one | two |\n| three | four |",
        "code": "```\nfor each in these:\n    call(each)\n```",
    }
    document = markdown("\n\n".join(wholes.get(kind, kind) for kind in kinds))
    passages = chunker(64, 32).chunk(document)
    for block in document.blocks:
        if block.kind in (BlockKind.TABLE, BlockKind.CODE):
            assert sum(passage.start <= block.start and block.end <= passage.end for passage in passages) == 1


def test_large_tables_and_code_blocks_are_split_between_lines() -> None:
    rows = "\n".join(f"| row {number} | some words |" for number in range(60))
    code = "\n".join(f"value_{number} = call({number})" for number in range(60))
    document = markdown(f"| a | b |\n|---|---|\n{rows}\n\n```\n{code}\n```")
    passages = chunker(64).chunk(document)
    lines = set(document.text.splitlines())
    assert len(passages) > 10
    assert all(line in lines for passage in passages for line in passage.text.splitlines())


@pytest.mark.parametrize("context", ["none", "headings", "neighbours"])
def test_later_pieces_of_a_table_are_embedded_with_its_first_row(context: str) -> None:
    rows = "\n".join(f"| row {number} | some words |" for number in range(60))
    first, *others = chunker(64, 16, context).chunk(markdown(f"| serial | owner |\n|---|---|\n{rows}"))
    assert first.table_header == ""
    assert len(others) > 5
    for passage in others:
        assert passage.table_header == "serial | owner"
        assert passage.context.endswith("serial | owner\n") or context == "none"
        assert count(passage.embedded_text) == passage.tokens


def test_the_last_columns_of_a_header_are_left_out_if_the_window_is_too_small() -> None:
    header = " | ".join(f"column {number}" for number in range(60))
    rows = "\n".join(f"| {number} | some words |" for number in range(60))
    passages = chunker(128, 16, "headings").chunk(markdown(f"| {header} |\n{'|---' * 60}|\n{rows}"))
    pieces = [passage for passage in passages if "words" in passage.text]
    assert len(pieces) > 2
    for passage in pieces:
        assert passage.table_header == header
        assert passage.context.startswith("column 0 | column 1")
        assert passage.tokens <= 256


def test_large_lists_are_split_between_their_outermost_items() -> None:
    item = "- an item with some words\n  - and what belongs to it\n"
    passages = chunker(64, 0).chunk(markdown(item * 30))
    assert all(passage.text.startswith("- an item") for passage in passages)


@pytest.mark.parametrize(
    ("sentence", "end"),
    [
        (SENTENCE, "."),
        ("私たちは情報に簡単にアクセスできます。", "。"),
        ("本当ですか？", "？"),
        ("people here answer questions about their leave within two working days. ", "."),
        ("Siehe z. B. die Seite zum Urlaub, dort steht alles dazu! ", "!"),
    ],
)
def test_large_paragraphs_are_split_at_sentence_ends(sentence: str, end: str) -> None:
    passages = chunker(64).chunk(extract((sentence * 60).encode(), "a.txt"))
    assert len(passages) > 3
    assert all(passage.text.endswith(end) for passage in passages)


def test_wrapped_lines_are_not_mistaken_for_sentences() -> None:
    wrapped = "The people team answers every question\nabout leave within two working days.\n" * 20
    passages = chunker(64).chunk(extract(wrapped.encode(), "a.txt"))
    assert all(passage.text.endswith("days.") for passage in passages)


def test_a_section_larger_than_one_batch_is_split_like_a_small_one() -> None:
    document = extract((SENTENCE * 10_000).encode(), "a.txt")
    passages = chunker(64).chunk(document)
    assert_passages_hold_the_text(document, passages, 64)
    assert {len(passage.text) % len(SENTENCE) for passage in passages} == {len(SENTENCE) - 1}


def test_passages_keep_their_heading_path_and_page() -> None:
    words = SENTENCE * 3
    passages = chunker(64, 16).chunk(markdown(f"{words}\n\n# Leave\n\n{words}\n\n## **Who** ##\n\n{words}"))
    assert [passage.heading_path for passage in passages] == [(), ("Leave",), ("Leave", "Who")]
    words = (SENTENCE * 2).strip()
    size = len(words)
    blocks = tuple(
        Block(BlockKind.PARAGRAPH, start, start + size, page=page)
        for page, start in enumerate(range(0, 3 * (size + 2), size + 2), start=1)
    )
    paged = ExtractedDocument("\n\n".join([words] * 3), "t", "application/pdf", blocks)
    assert [passage.page for passage in chunker(32, 0).chunk(paged)] == [1, 2, 3]


def test_headings_context_names_the_document_and_the_enclosing_sections() -> None:
    document = extract(f"# Leave\n\n## Who\n\n{SENTENCE * 20}".encode(), "people/handbook.md")
    first, *others = chunker(64, 16, "headings").chunk(document)
    assert document.title == "Leave"
    assert first.text.startswith("# Leave")
    assert first.context == ""
    assert {passage.context for passage in others} == {"Leave > Who\n"}


def test_neighbours_context_is_whole_preceding_sentences() -> None:
    document = extract((SENTENCE * 20).encode(), "a.txt")
    first, *others = chunker(64, 16, "neighbours").chunk(document)
    assert first.context == ""
    for passage in others:
        assert passage.context.startswith("The people team")
        assert document.text[: passage.start].endswith(passage.context)


def test_the_version_changes_with_everything_that_affects_passages() -> None:
    other_vectors = StaticVectors(np.zeros((4, 4), np.float16), "1" * 64)
    other_tokenizer = Tokenizer.from_str(model_tokenizer().to_str())
    other_tokenizer.add_tokens(["newword"])
    made = [
        chunker(128, 16),
        chunker(64, 16),
        chunker(128, 32),
        chunker(128, 16, "headings"),
        chunker(128, 16, "neighbours"),
        SemanticChunker(model_tokenizer(), other_vectors, max_tokens=128, min_tokens=16),
        SemanticChunker(other_tokenizer, vectors(), max_tokens=128, min_tokens=16),
        SemanticChunker(model_tokenizer(), vectors(), max_tokens=128, min_tokens=16, window=200, context="headings"),
        SemanticChunker(model_tokenizer(), vectors(), max_tokens=128, min_tokens=16, prices=CutCosts(scatter=2)),
        StructureChunker(model_tokenizer(), max_tokens=128, min_tokens=16),
    ]
    assert len({each.version for each in made}) == len(made)
    same = SemanticChunker(model_tokenizer(), vectors(), max_tokens=128, min_tokens=16)
    assert same.version == chunker(128, 16).version


@pytest.mark.parametrize("context", ["none", "headings", "neighbours"])
@pytest.mark.parametrize("name", ["semantic", "structure"])
@pytest.mark.parametrize("window", [32, 40, 100, 512])
def test_every_combination_of_options_keeps_passages_within_the_window(name: str, context: str, window: int) -> None:
    options = ChunkerOptions(name, 4096, context)  # pyright: ignore[reportArgumentType]
    document = markdown("# A title of some words\n\n" + "\n\n".join([SENTENCE * 5] * 12))
    for passage in make_chunker(options, model_tokenizer(), window, vectors()).chunk(document):
        assert count(passage.embedded_text) <= window


@given(STRUCTURED_TEXT.map("\n\n".join))
def test_a_count_marked_exact_equals_the_tokenizers(source: str) -> None:
    try:
        document = extract(source.encode("utf-8", errors="replace"), "a.md")
    except ExtractionError:
        return
    tokens = TokenCounter(model_tokenizer()).read(document)
    seen: list[Passage] = chunker(32, 0).chunk(document)
    exact = [passage for passage in seen if tokens.is_exact(passage.start, passage.end)]
    assert [tokens.count(passage.start, passage.end) + 2 for passage in exact] == [count(each.text) for each in exact]


def test_counts_are_not_exact_for_a_tokenizer_not_known_to_split_at_spaces() -> None:
    from tokenizers import models, pre_tokenizers

    byte_level = Tokenizer(models.BPE(vocab={"a": 0}, merges=[], unk_token="a"))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    document = extract(b"a word", "a.txt")
    assert TokenCounter(model_tokenizer()).read(document).is_exact(0, 6)
    assert not TokenCounter(byte_level).read(document).is_exact(0, 6)
