"""Names and links that callers see instead of the URIs of source objects."""

from __future__ import annotations

from typing import Any

import pytest

from rag_serving.http.documents.presentation import Presentation
from rag_serving.results import Hit
from tests.answers import hit

ADDRESS = "https://rag.example"


def shown(**update: Any) -> Hit:
    return Presentation(ADDRESS).place(hit(1, "text").model_copy(update=update))


def test_a_hit_has_its_shard_and_path_as_source_and_a_link_to_the_viewer_at_its_passage() -> None:
    one = shown(shard="Oslo/R&D", path="a b.md", source="file:///srv/docs/Oslo/R%26D/a%20b.md", doc_id="1f")
    assert one.source == "Oslo/R&D/a b.md"
    assert one.link == f"{ADDRESS}/documents/Oslo/R%26D/1f#chunk=10-14"


def test_a_link_of_the_template_is_kept() -> None:
    assert shown(link="https://intranet.example/1").link == "https://intranet.example/1"


@pytest.mark.parametrize(
    ("root", "duplicate", "name"),
    [
        ("file:///srv/my%20docs", "file:///srv/my%20docs/Lisbon/legal/copy%20%232.pdf", "Lisbon/legal/copy #2.pdf"),
        ("s3://bucket/in", "s3://bucket/in/Lisbon/legal/mail.eml#a%20b.pdf", "Lisbon/legal/mail.eml#a b.pdf"),
        ("s3://bucket/in", "s3://other/in/Lisbon/legal/a.pdf", "a.pdf"),
        ("s3://bucket/in", "file:///srv/docs/Lisbon/legal/a.pdf", "a.pdf"),
    ],
)
def test_duplicates_are_named_without_the_path_of_the_server(root: str, duplicate: str, name: str) -> None:
    one = shown(shard="Oslo/legal", path="lease.pdf", source=f"{root}/Oslo/legal/lease.pdf", also_in=(duplicate,))
    assert one.also_in == (name,)


def test_a_hit_of_an_older_table_without_paths_is_named_by_its_file() -> None:
    one = shown(path="", source="file:///srv/docs/oslo/finance/a%20b.md", also_in=("file:///srv/docs/x/y/c.md",))
    assert (one.source, one.also_in) == ("oslo/finance/a b.md", ("c.md",))
