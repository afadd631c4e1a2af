"""Sources of other installed packages (entry points `rag_shards.sources`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from rag_assets.sources.open import open_source
from rag_serving.errors import SettingsError
from tests.installed_packages import install_package

CODE = """
from pathlib import Path
from rag_assets.sources.folder import FolderSource

def open_share(uri):
    return FolderSource(Path("/shares") / uri.removeprefix("share://"))
"""


def test_a_scheme_of_an_installed_package_opens_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_package(tmp_path, "share_source", CODE, "[rag_shards.sources]\nshare = share_source:open_share\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    source = open_source("share://docs")
    assert source.uri("oslo/people/a.md").endswith("/shares/docs/oslo/people/a.md")


def test_a_source_plugin_that_cannot_be_loaded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_package(tmp_path, "share_broken", CODE, "[rag_shards.sources]\nshare = share_broken:missing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SettingsError, match="RAG_SOURCE_URI: the source plugin share of share_broken cannot be loaded"):
        open_source("share://docs")


def test_a_scheme_that_no_package_has_is_refused() -> None:
    with pytest.raises(SettingsError, match="share:// is not supported"):
        open_source("share://docs")
