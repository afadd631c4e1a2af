"""Formats of other installed packages (entry points `rag_shards.formats`)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from rag_assets.extraction.errors import QuarantineReason
from rag_assets.extraction.format import installed_formats
from rag_assets.extraction.registry import EXTRACTOR_VERSION, extractor_version, heading_text
from rag_assets.extraction.sandbox.pool import ParserLimits, ParserPool
from tests.docs_pages import ROOT, blocks
from tests.documents import extract, refusal
from tests.installed_packages import install_package

CODE = """
from rag_assets.extraction.document import BlockKind, DocumentBuilder
from rag_assets.extraction.format import Format

def extract(data):
    document = DocumentBuilder("text/x-cad")
    document.add(BlockKind.HEADING, "* Drawing", level=1)
    document.add(BlockKind.PARAGRAPH, data.decode())
    return document.build()

def fail(data):
    raise RuntimeError("broken detection")

CAD = Format("CAD", "text/x-cad", extract, suffixes=frozenset({".cad"}), heading=lambda text: text.strip("* "))

def formats():
    return [CAD, Format("other", "text/x-other", extract, fail, frozenset({".oth"}))]

def wrong():
    return ["no format"]
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path, also on that of parser processes."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    installed_formats.cache_clear()
    yield tmp_path
    installed_formats.cache_clear()


@pytest.mark.parametrize("name", ["CAD", "formats"])
def test_a_format_of_an_installed_package_is_read(packages: Path, name: str) -> None:
    install_package(packages, f"cad_{name}", CODE, f"[rag_shards.formats]\ncad = cad_{name}:{name}\n")
    document = extract(b"a bolt", "oslo/people/bolt.cad")
    assert (document.media_type, document.text) == ("text/x-cad", "* Drawing\n\na bolt")
    assert heading_text(document, document.blocks[0]) == "Drawing"


def test_a_parser_process_loads_the_formats_of_installed_packages(packages: Path) -> None:
    install_package(packages, "cad_pool", CODE, "[rag_shards.formats]\ncad = cad_pool:formats\n")
    pool = ParserPool(ParserLimits(), 1)
    try:
        assert pool.read(b"a bolt", "bolt.cad").parts[0].document.media_type == "text/x-cad"
    finally:
        pool.close()


def test_the_detection_of_a_plugin_that_fails_breaks_no_other_format(packages: Path) -> None:
    install_package(packages, "cad_detect", CODE, "[rag_shards.formats]\ncad = cad_detect:formats\n")
    assert extract(b"# Leave", "a.md").text == "# Leave"


@pytest.mark.parametrize("value", ["cad_bad:missing", "cad_gone:x", "cad_bad:wrong"])
def test_a_plugin_that_cannot_be_loaded_is_named_and_breaks_no_other_format(
    packages: Path, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    install_package(packages, "cad_bad", CODE, f"[rag_shards.formats]\nbad = {value}\ngood = cad_bad:CAD\n")
    with caplog.at_level(logging.WARNING):
        assert extract(b"# Leave", "a.md").text == "# Leave"
        assert extract(b"a bolt", "a.cad").media_type == "text/x-cad"
        error = refusal(b"words", "a.dwg")
    assert error.reason is QuarantineReason.UNSUPPORTED_TYPE
    assert "the format plugin bad of cad_bad cannot be loaded" in error.detail
    assert "the format plugin bad of cad_bad cannot be loaded" in caplog.text


def test_documents_are_read_again_after_a_plugin_was_installed(packages: Path) -> None:
    assert extractor_version() == EXTRACTOR_VERSION
    install_package(packages, "cad_version", CODE, "[rag_shards.formats]\ncad = cad_version:CAD\n")
    installed_formats.cache_clear()
    assert extractor_version() == f"{EXTRACTOR_VERSION}+cad=1.2"


def test_the_plugin_of_the_guide_is_read(packages: Path) -> None:
    page = ROOT / "docs/development/adding-a-format.md"
    toy, plugin = (block.text for block in blocks(page) if block.language == "py")
    (entry_points,) = (block.text for block in blocks(page) if block.language == "toml")
    line = next(line for line in entry_points.splitlines() if line.startswith("toy"))
    install_package(packages, "rag_toy", toy + plugin, f"[rag_shards.formats]\n{line.replace(chr(34), '')}\n")
    assert extract(b"Winches\nGrease them.", "oslo/people/winches.toy").title == "Winches"
