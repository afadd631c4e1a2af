"""The commands for unreadable documents."""

import json
import shlex
from collections.abc import Sequence
from typing import Any

import click

from rag_assets.cli.backfill import launch_in_daemon
from rag_assets.cli.output import counted, report_result, run_with_progress, user_name
from rag_assets.extraction.errors import QuarantineReason
from rag_assets.settings import PipelineSettings
from rag_serving.cli.errors import NamedClickError
from rag_serving.lake.shards import Shard


@click.group()
def quarantine() -> None:
    """List, inspect and retry unreadable documents."""


@quarantine.command("list")
@click.argument("shards", nargs=-1, metavar="[REGION/DEPARTMENT]...")
@click.option("--reason", type=click.Choice([reason.value for reason in QuarantineReason]), help="Only this reason.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def list_quarantined(shards: tuple[str, ...], reason: str | None, as_json: bool) -> None:
    """List quarantined documents, of all published shards or of those named."""
    from rag_assets.pipeline import Pipeline

    rows = [(name, row) for _, name, row in _quarantined(shards) if reason in (None, row["reason"])]
    for name, row in rows:
        if as_json:
            click.echo(json.dumps(row, default=str, ensure_ascii=False))
        else:
            tries = "1 attempt" if row["attempts"] == 1 else f"{row['attempts']} attempts"
            click.echo(f"{row['reason']:<17} {tries:<12} {name}")
    if as_json:
        return
    pipeline = Pipeline(PipelineSettings.from_env())
    if not shards and not pipeline.catalog().snapshot().entries:
        click.echo(f"nothing is published in {pipeline.settings.lake_uri}; check RAG_LAKE_URI", err=True)
    else:
        click.echo(f"{len(rows)} quarantined", err=True)


@quarantine.command("show")
@click.argument("key")
def show_quarantined(key: str) -> None:
    """Show one quarantined document, by its KEY in the source."""
    _, name, row = _one_quarantined(key)
    facts = {
        "document": name,
        "reason": f"{row['reason']}: {row['detail']}",
        "size": f"{row['size']:,} bytes",
        "first seen": f"{row['first_seen']:%Y-%m-%d %H:%M:%S} UTC",
        "last tried": f"{row['last_seen']:%Y-%m-%d %H:%M:%S} UTC",
        "attempts": f"{row['attempts']}{' (marked for a retry with the next run)' if row['retry'] else ''}",
        "etag": row["etag"],
        "extractor": f"version {row['extractor']}",
    }
    for what, fact in facts.items():
        click.echo(f"{what:<11} {fact}")


@quarantine.command("retry")
@click.argument("keys", nargs=-1)
@click.option("--shard", "shards", multiple=True, metavar="REGION/DEPARTMENT", help="All documents of this shard.")
@click.option("--reason", type=click.Choice([reason.value for reason in QuarantineReason]), help="Only this reason.")
@click.option("--here", is_flag=True, help="Retry in this process, without a daemon.")
def retry_quarantined(keys: tuple[str, ...], shards: tuple[str, ...], reason: str | None, here: bool) -> None:
    """Retry documents, by their KEYS or all of a shard.

    Starts a backfill of their shards in the daemon.

    Example: rag-assets quarantine retry --shard london/people --reason encrypted
    """
    from rag_assets.pipeline import Pipeline
    from rag_assets.runs import backfill as runs
    from rag_assets.stages.document_state import retry_documents

    if not keys and not shards:
        raise click.UsageError("specify the keys to retry, or a --shard")
    chosen = [_one_quarantined(key) for key in keys] + (_quarantined(shards) if shards else [])
    by_shard: dict[Shard, set[str]] = {}
    for shard, _, row in chosen:
        if reason in (None, row["reason"]):
            by_shard.setdefault(shard, set()).add(row["object_id"])
    if not by_shard:
        click.echo("nothing to do")
        return
    settings = PipelineSettings.from_env()
    pipeline = Pipeline(settings)
    if not here:
        with runs.open_dagster(settings) as dagster:
            dagster.require_daemon()
    for shard, object_ids in sorted(by_shard.items()):
        with pipeline.writer(shard, holder=f"quarantine retry by {user_name()}") as writer:
            retry_documents(writer, sorted(object_ids))
    count = sum(map(len, by_shard.values()))
    click.echo(f"marked {counted(count, 'document')} of {counted(len(by_shard), 'shard')} for a retry")
    if not here:
        launch_in_daemon(settings, sorted(by_shard), {}, location=None, wait=False)
        return
    with runs.open_instance() as instance:
        report_result(run_with_progress(instance, settings, sorted(by_shard), {}, verbose=False, jobs=1))
    for shard, name, row in _quarantined([shard.key for shard in by_shard]):
        if row["object_id"] in by_shard[shard]:
            click.echo(f"still quarantined: {name} ({row['reason']})", err=True)


def _quarantined(keys: Sequence[str]) -> list[tuple[Shard, str, dict[str, Any]]]:
    """Return shard, name and row of the quarantined documents of those shards, or of all published ones."""
    from rag_assets.pipeline import Pipeline
    from rag_assets.stages.document_state import document_name, quarantined_documents

    pipeline = Pipeline(PipelineSettings.from_env())
    shards = [Shard.parse(key) for key in keys] or sorted(pipeline.catalog().snapshot().entries)
    return [
        (shard, document_name(row), row) for shard in shards for row in quarantined_documents(pipeline.lake(), shard)
    ]


def _one_quarantined(key: str) -> tuple[Shard, str, dict[str, Any]]:
    from rag_assets.sources.base import shard_of

    shard = shard_of(key.partition("#")[0])
    if shard is None:
        raise NamedClickError(f"{key!r} is not a document's key: expected region/department/name")
    for found in _quarantined([shard.key]):
        if found[1] == key:
            return found
    raise NamedClickError(f"{key} is not quarantined; see rag-assets quarantine list {shlex.quote(shard.key)}")
