"""Promise 9: a dead worker is noticed within two minutes, and its shard is run again; here by Celery workers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.pipelines import seed_model
from tests.stress.cluster import cancel, cluster, doubled, pages, survive

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_cluster_that_loses_workers_and_its_broker_publishes_every_document_once(
    server_binaries: Path, model_lake: str, s3_client: S3Client, s3_environment: str, tmp_path: Path
) -> None:
    documents = 40
    wanted = pages(shards=5, documents=documents)
    for shard, texts in wanted.items():
        for name, text in texts.items():
            s3_client.put_object(Bucket=s3_environment, Key=f"incoming/{shard}/{name}", Body=text.encode())
    source, lake = f"s3://{s3_environment}/incoming", f"s3://{s3_environment}/lake"
    seed_model(model_lake, lake)
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    with cluster(server_binaries, tmp_path, source, lake, environment, slots=2) as running:
        found = survive(running, sorted(wanted), documents)
        print(found)
        assert found.problems == []
        shard, texts = next(iter(wanted.items()))
        for name, text in texts.items():
            for number in range(4):  # enough for a run that lasts until it notices
                key, body = f"incoming/{shard}/new-{number}-{name}", text.replace("crane", f"hoist {number}, crane")
                s3_client.put_object(Bucket=s3_environment, Key=key, Body=body.encode())
        assert cancel(running) == []
        assert not doubled(running, [shard], 5 * documents)
