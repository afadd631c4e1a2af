"""Links that RAG_SOURCE_LINK makes of documents."""

from __future__ import annotations

import pytest

from rag_serving.retrieval.source_links import source_link

EVERYTHING = "https://intranet.example/{region}/{department}/{path}?s={shard}&n={name}"


def test_a_link_has_the_percent_encoded_parts_of_the_document() -> None:
    path = 'legal & co/le"ase #2 Ø.pdf'
    link = source_link(EVERYTHING, "Oslo/R&D", path, "file:///srv/docs/Oslo/R%26D/x.pdf")
    encoded = "le%22ase%20%232%20%C3%98.pdf"
    assert link == (f"https://intranet.example/Oslo/R%26D/legal%20%26%20co/{encoded}?s=Oslo/R%26D&n={encoded}")


def test_an_attachment_links_to_the_object_that_contains_it() -> None:
    source = "s3://docs/Oslo/legal/mail #1.eml#price%20list.pdf".replace("#1", "%231")
    link = source_link("https://a.example/{path}", "Oslo/legal", "mail #1.eml#price list.pdf", source)
    assert link == "https://a.example/mail%20%231.eml"


@pytest.mark.parametrize("path", ["", "../secret", "a/../../secret", "a/./b"])
def test_a_path_that_a_browser_would_resolve_gets_no_link(path: str) -> None:
    assert source_link("https://a.example/docs/{path}", "Oslo/legal", path, "file:///x") is None


def test_without_a_template_there_is_no_link() -> None:
    assert source_link(None, "Oslo/legal", "a.md", "file:///x/a.md") is None
