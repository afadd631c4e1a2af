"""Which objects are opened as originals; the lake, which names them, may have been manipulated."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rag_serving.errors import SourceGone, SourceNotOffered, SourceUnavailable
from rag_serving.retrieval.originals import Originals


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "docs"
    for name in ("Oslo/legal/lease.md", "Oslo/finance/secret.md", "Oslo/legal/.hidden/a.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (tmp_path / "docs-2/Oslo/legal").mkdir(parents=True)
    (tmp_path / "docs-2/Oslo/legal/a.md").write_text("beside")
    (tmp_path / "passwd").write_text("secret")
    return root


def content(root: Path, source: str, shard: str = "Oslo/legal") -> bytes:
    async def read() -> bytes:
        original = await Originals(str(root)).open(source, shard)
        return await original.read(0, original.size)

    return asyncio.run(read())


@pytest.mark.parametrize(
    "path",
    [
        "Oslo/finance/secret.md",
        "Oslo/legal/../finance/secret.md",
        "Oslo/legal/%2e%2e/finance/secret.md",
        "Oslo/legal/..%2ffinance/secret.md",
        "Oslo/legal/.hidden/a.md",
        "Oslo/legal//lease.md",
        "Oslo/legal/lease.md%00",
        "Oslo/legal/",
        "Oslo/legal",
        "../passwd",
        "../docs-2/Oslo/legal/a.md",
        "",
    ],
)
def test_only_files_in_the_folder_of_the_shard_are_opened(folder: Path, path: str) -> None:
    assert content(folder, f"{folder.as_uri()}/Oslo/legal/lease.md") == b"Oslo/legal/lease.md"
    with pytest.raises(SourceNotOffered):
        content(folder, f"{folder.as_uri()}/{path}")


@pytest.mark.parametrize(
    "source",
    [
        "file:///etc/passwd",
        "/etc/passwd",
        "Oslo/legal/lease.md",
        "s3://docs/Oslo/legal/lease.md",
        "http://127.0.0.1/Oslo/legal/a",
    ],
)
def test_other_sources_are_not_opened(folder: Path, source: str) -> None:
    with pytest.raises(SourceNotOffered):
        content(folder, source)


@pytest.mark.parametrize(
    "source",
    [
        "s3://docs/in/Oslo/finance/secret.md",
        "s3://docs/in/Oslo/legal/../finance/secret.md",
        "s3://docs/in/Oslo/legal/%2e%2e/finance/secret.md",
        "s3://docs/in-2/Oslo/legal/lease.md",
        "s3://docs/Oslo/legal/lease.md",
        "s3://other/in/Oslo/legal/lease.md",
        "file:///in/Oslo/legal/lease.md",
    ],
)
def test_only_objects_of_the_shard_in_the_bucket_are_opened(source: str) -> None:
    with pytest.raises(SourceNotOffered):
        asyncio.run(Originals("s3://docs/in").open(source, "Oslo/legal"))


@pytest.mark.parametrize("target", ["../../../passwd", "../finance/secret.md", "/etc/passwd"])
def test_symbolic_links_out_of_the_folder_of_the_shard_are_not_followed(folder: Path, target: str) -> None:
    (folder / "Oslo/legal/link.md").symlink_to(target)
    (folder / "Oslo/legal/within.md").symlink_to("lease.md")
    with pytest.raises(SourceNotOffered):
        content(folder, f"{folder.as_uri()}/Oslo/legal/link.md")
    assert content(folder, f"{folder.as_uri()}/Oslo/legal/within.md") == b"Oslo/legal/lease.md"


def test_a_shard_that_is_a_symbolic_link_is_not_opened(folder: Path) -> None:
    (folder / "Oslo/hr").symlink_to("finance")
    with pytest.raises(SourceNotOffered):
        content(folder, f"{folder.as_uri()}/Oslo/hr/secret.md", "Oslo/hr")


def test_an_original_that_changes_while_it_is_read_is_not_mixed_with_its_new_version(folder: Path) -> None:
    path = folder / "Oslo/legal/lease.md"

    async def read() -> None:
        original = await Originals(str(folder)).open(path.as_uri(), "Oslo/legal")
        assert await original.read(0, 4) == b"Oslo"
        path.write_text("Another text of another length")
        await original.read(4, original.size)

    with pytest.raises(SourceGone):
        asyncio.run(read())


def test_a_folder_that_is_not_there_is_unavailable_and_a_file_that_is_not_there_is_gone(folder: Path) -> None:
    source = f"{folder.as_uri()}/Oslo/legal/gone.md"
    with pytest.raises(SourceGone):
        content(folder, source)
    folder.rename(folder.with_name("unmounted"))
    with pytest.raises(SourceUnavailable) as caught:
        content(folder, source)
    assert str(folder) not in str(caught.value)


def test_a_source_of_another_package_offers_no_originals() -> None:
    with pytest.raises(SourceNotOffered):
        content(Path("sharepoint://company/docs"), "sharepoint://company/docs/Oslo/legal/lease.md")
