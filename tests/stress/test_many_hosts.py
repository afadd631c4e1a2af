"""Several machines index one lake at once with `backfill --here`, each with a Dagster instance of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rag_assets.cli.init import write_instance
from rag_serving.lake.catalog import Catalog
from rag_serving.lake.object_store import open_object_store
from tests.pipelines import seed_model
from tests.stress.burst import ROOT, daemon_environment
from tests.stress.cluster import pages

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

HOSTS = 3


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("stored", ["folder", "s3"])
def test_machines_that_start_together_share_the_shards_without_a_false_failure(
    stored: str, model_lake: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    wanted = pages(shards=12, documents=3)
    if stored == "s3":
        bucket: str = request.getfixturevalue("s3_environment")
        client: S3Client = request.getfixturevalue("s3_client")
        source, lake = f"s3://{bucket}/incoming", f"s3://{bucket}/lake"
        for shard, texts in wanted.items():
            for name, text in texts.items():
                client.put_object(Bucket=bucket, Key=f"incoming/{shard}/{name}", Body=text.encode())
    else:
        source, lake = str(tmp_path / "source"), str(tmp_path / "lake")
        for shard, texts in wanted.items():
            (tmp_path / "source" / shard).mkdir(parents=True)
            for name, text in texts.items():
                (tmp_path / "source" / shard / name).write_text(text)
    seed_model(model_lake, lake)
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    started = time.monotonic()
    hosts: list[subprocess.Popen[str]] = []
    for number in range(HOSTS):
        home = tmp_path / f"home-{number}"
        write_instance(home)
        uris = {"RAG_SOURCE_URI": source, "RAG_LAKE_URI": lake, "PYTHONPATH": str(ROOT)}
        hosts.append(
            subprocess.Popen(
                [sys.executable, "-m", "rag_assets.cli", "backfill", "--here", "--jobs", "1"],
                env=daemon_environment(tmp_path, tmp_path, home) | aws | uris,
                cwd=home,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    outputs = [host.communicate(timeout=500) for host in hosts]
    print(f"{time.monotonic() - started:.1f} s", *outputs, sep="\n")
    assert [host.returncode for host in hosts] == [0] * HOSTS, outputs
    entries = Catalog(open_object_store(lake)).snapshot().entries
    assert {shard.key: entry.current.documents for shard, entry in entries.items()} == dict.fromkeys(wanted, 3)
    own = [int(found[1]) if (found := re.search(r"(\d+) shards? indexed in", out)) else 0 for out, _ in outputs]
    added = [int(found[1]) if (found := re.search(r"(\d+) documents? added", out)) else 0 for out, _ in outputs]
    assert sum(added) == 3 * len(wanted)  # no document was read by two machines
    assert sum(own) == len(wanted)
