"""The command `rag-serving`: ask, search, list, review notes and serve; `calibrate` and `keys` are beside it."""

import json
from collections.abc import Callable
from datetime import datetime
from typing import get_args

import click

from rag_serving.cli.calibrate import calibrate_command
from rag_serving.cli.errors import NamedErrorGroup, require_http_extra
from rag_serving.cli.keys import keys
from rag_serving.clients.sync import RagClient
from rag_serving.lake.search.query import Mode
from rag_serving.results import Answer, Place


def _scope(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--region", "regions", multiple=True, help="Only this region; may be repeated."),
        click.option("--department", "departments", multiple=True, help="Only this department; may be repeated."),
        click.option("-k", "k", type=int, default=8, show_default=True, help="Passages to look for, 1 to 100."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    ):
        command = option(command)
    return command


@click.group(cls=NamedErrorGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rag-shards")
def main() -> None:
    """Answers from the published shards of a lake (RAG_LAKE_URI), or of a service (RAG_SERVICE_URL)."""


@main.command()
@click.argument("question")
@_scope
def ask(question: str, regions: tuple[str, ...], departments: tuple[str, ...], k: int, as_json: bool) -> None:
    """Answer QUESTION with its sources."""
    with RagClient.from_env() as client:
        answer = client.ask(question, regions=regions or None, departments=departments or None, k=k)
    click.echo(answer.model_dump_json(indent=1) if as_json else render(answer))


@main.command()
@click.argument("question")
@_scope
@click.option(
    "--mode",
    type=click.Choice(get_args(Mode)),
    default="hybrid",
    show_default=True,
    help="What finds passages: meaning, words, or both.",
)
@click.option("--path-prefix", help="Only documents whose path below region/department/ begins so.")
@click.option("--from", "modified_from", type=click.DateTime(), help="Only documents changed then or later, in UTC.")
@click.option("--before", "modified_before", type=click.DateTime(), help="Only documents changed before, in UTC.")
@click.option("--join", "join_neighbours", is_flag=True, help="Show passages that follow each other as one.")
def search(
    question: str,
    regions: tuple[str, ...],
    departments: tuple[str, ...],
    k: int,
    as_json: bool,
    mode: Mode,
    path_prefix: str | None,
    modified_from: datetime | None,
    modified_before: datetime | None,
    join_neighbours: bool,
) -> None:
    """List the passages nearest to QUESTION."""
    with RagClient.from_env() as client:
        hits = client.search(
            question,
            regions=regions or None,
            departments=departments or None,
            k=k,
            mode=mode,
            path_prefix=path_prefix,
            modified_from=modified_from,
            modified_before=modified_before,
            join_neighbours=join_neighbours,
        )
    if as_json:
        click.echo(json.dumps([hit.model_dump(mode="json") for hit in hits], ensure_ascii=False, indent=1))
        return
    for hit in hits:
        click.echo(f"{hit.rank:>2}  {_score(hit)}  {place(hit)}")
        click.echo(f"            {' '.join(hit.text.split())[:140]}")
    _warn(hits.degraded)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def shards(as_json: bool) -> None:
    """List what is published."""
    with RagClient.from_env() as client:
        entries = client.shards()
    if as_json:
        click.echo(json.dumps([entry.model_dump(mode="json") for entry in entries], ensure_ascii=False, indent=1))
        return
    for entry in entries:
        click.echo(
            f"{entry.shard:<40} {entry.documents:>7} documents {entry.chunks:>8} chunks  version "
            f"{entry.version:<5} {entry.published_at:%Y-%m-%d %H:%M:%S}"
            + (f"  {entry.quarantined} quarantined" if entry.quarantined else "")
        )
    if not entries:
        click.echo("nothing is published yet", err=True)


@main.command()
@click.option("--kind", type=click.Choice(["near_miss", "shadow", "feedback"]), help="Only these.")
def notes(kind: str | None) -> None:
    """Print pairs of questions that were refused narrowly, served in the shadow, or judged, as JSON lines.

    Label them with `same` (true or false) and hand them to `calibrate`.
    """
    with RagClient.from_env() as client:
        for note in client.notes():
            if kind in (None, note.kind):
                click.echo(note.model_dump_json())


main.add_command(calibrate_command)
main.add_command(keys)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="Port to listen on.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 256), help="Processes.")
@click.option("--open", "open_to_all", is_flag=True, help="Without keys: whoever reaches it may ask everything.")
def serve(host: str, port: int, workers: int, open_to_all: bool) -> None:
    """Answer over HTTP (needs rag-shards[http]; keys from RAG_HTTP_KEYS)."""
    require_http_extra()
    from rag_serving.http.server import serve as run

    run(host, port, workers=workers, open_to_all=open_to_all)


def render(answer: Answer) -> str:
    """An answer as text: what it says, the sources, how the cache and the clock stood."""
    lines = [answer.text, ""]
    lines += [f"  [{citation.number}] {place(citation)}  score {_score(citation)}" for citation in answer.citations]
    state = answer.cache
    if answer.similarity is not None and state == "semantic":
        state += f" (similarity {answer.similarity:.3f} with “{answer.cached_question}”)"
    elif answer.cache_reason is not None and state != "exact":
        state += f" ({answer.cache_reason})"
    lines.append(f"  cache: {state}   total: {answer.timings.get('total', 0):.1f} ms   " + _phases(answer))
    if answer.degraded:
        lines.append(f"  degraded: {', '.join(answer.degraded)}")
    return "\n".join(lines)


def place(passage: Place) -> str:
    """Where a passage stands, on one line."""
    where = f"page {passage.page}, " if passage.page is not None else ""
    heading = f" § {' › '.join(passage.heading_path)}" if passage.heading_path else ""
    return f"{passage.source}{heading} ({where}characters {passage.start}–{passage.end}) [{passage.shard}]"


def _score(passage: Place) -> str:
    return "  –  " if passage.score is None else f"{passage.score:.3f}"


def _phases(answer: Answer) -> str:
    return "  ".join(f"{phase} {value:.1f}" for phase, value in answer.timings.items() if phase != "total")


def _warn(degraded: tuple[str, ...]) -> None:
    if degraded:
        click.echo(f"degraded: {', '.join(degraded)}", err=True)
