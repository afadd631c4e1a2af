"""Places that exist twice, as a folder and on a real S3 server: a test that asks for one runs on both."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.servers.roots import BucketRoot, FolderRoot, SourceRoot


@pytest.fixture(params=["folder", "s3"])
def lake_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty lake."""
    if request.param == "folder":
        return str(tmp_path / "lake")
    return f"s3://{request.getfixturevalue('s3_environment')}/lake"


@pytest.fixture(params=["folder", "s3"])
def source_root(request: pytest.FixtureRequest, tmp_path: Path) -> SourceRoot:
    """An empty source; documents are put there through the object itself, without the code under test."""
    if request.param == "folder":
        folder = tmp_path / "source"
        folder.mkdir()
        return FolderRoot(folder)
    bucket: str = request.getfixturevalue("s3_environment")
    return BucketRoot(request.getfixturevalue("s3_client"), bucket, "incoming")
