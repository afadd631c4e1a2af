"""The command `rag-serving`; its subcommands `calibrate` and `keys` have modules of their own."""

import asyncio
import errno
import json
import socket
from collections.abc import Callable
from datetime import datetime
from typing import Any, get_args

import click

from rag_serving.cli.calibrate import calibrate_command
from rag_serving.cli.doctor import doctor
from rag_serving.cli.errors import NamedClickError, NamedErrorGroup
from rag_serving.cli.keys import keys
from rag_serving.clients.sync import RagClient, client_of_environment
from rag_serving.lake.search.query import Mode
from rag_serving.requirements import require_module, require_posix
from rag_serving.results import Answer, Place, in_words
from rag_serving.settings import ServiceSettings, ServingSettings
from rag_serving.validation import MAX_K


class Moment(click.DateTime):
    """A date, or a date and a time."""

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002  # the interface's
        """Return how help shows the value."""
        return "YYYY-MM-DD"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the datetime; fails with an example instead of strptime's formats."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} is not a date; write YYYY-MM-DD or YYYY-MM-DDTHH:MM:SS", param, ctx)


def _scope(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--region", "regions", multiple=True, help="Search this region only; repeatable."),
        click.option("--department", "departments", multiple=True, help="Search this department only; repeatable."),
        click.option(
            "-k", "k", type=click.IntRange(1, MAX_K), default=8, show_default=True, help="Number of passages."
        ),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    ):
        command = option(command)
    return command


@click.group(
    "rag-serving", cls=NamedErrorGroup, extra="serving", context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="rag-shards")
def main() -> None:
    """Query the published shards of a lake (RAG_LAKE_URI) or of a service (RAG_SERVICE_URL).

    Example: rag-serving ask "How much parental leave do I get?" --region oslo
    """


@main.command(short_help="Answer a question with its sources.")
@click.argument("question")
@_scope
def ask(question: str, regions: tuple[str, ...], departments: tuple[str, ...], k: int, as_json: bool) -> None:
    """Answer QUESTION with its sources.

    Example: rag-serving ask "How much parental leave do I get?" --region oslo
    """
    with RagClient.from_env() as client:
        answer = client.ask(question, regions=regions or None, departments=departments or None, k=k)
    click.echo(answer.model_dump_json(indent=1) if as_json else render(answer))


@main.command(short_help="Find passages for a question.")
@click.argument("question")
@_scope
@click.option(
    "--mode",
    type=click.Choice(get_args(Mode)),
    default="hybrid",
    show_default=True,
    help="Search by vector, by full text, or both.",
)
@click.option("--path-prefix", help="Only documents whose path below region/department/ starts with this.")
@click.option("--from", "modified_from", type=Moment(), help="Only documents modified at or after (UTC).")
@click.option("--before", "modified_before", type=Moment(), help="Only documents modified before (UTC).")
@click.option("--join", "join_neighbours", is_flag=True, help="Merge adjacent passages of a document.")
@click.option("--per-document", type=int, help="Most passages of a document.")
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
    per_document: int | None,
) -> None:
    """List the passages that match QUESTION, best first.

    Example: rag-serving search "travel per diem" --department finance --mode text
    """
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
            per_document=per_document,
        )
    if as_json:
        click.echo(json.dumps([hit.model_dump(mode="json") for hit in hits], ensure_ascii=False, indent=1))
        return
    if not hits:
        click.echo("no passage was found", err=True)
    for hit in hits:
        click.echo(f"{hit.rank:>2}  {_score(hit)}  {place(hit)}")
        if hit.table_header:
            click.echo(f"            {hit.table_header[:140]}")
        click.echo(f"            {' '.join(hit.text.split())[:140]}")
    _warn(hits.degraded)


@main.command(short_help="List the published shards.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def shards(as_json: bool) -> None:
    """List the published shards with their sizes and versions.

    Example: rag-serving shards --json
    """
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
        service = ServiceSettings.from_env().url
        click.echo(
            f"the key sees no published shard of {service}; check RAG_SERVICE_KEY"
            if service
            else f"nothing is published in {ServingSettings.from_env().lake_uri}; check RAG_LAKE_URI",
            err=True,
        )


@main.command(short_help="Print pairs of questions to review, as JSON lines.")
@click.option("--kind", type=click.Choice(["near_miss", "shadow", "feedback"]), help="Print this kind only.")
def notes(kind: str | None) -> None:
    """Print pairs of questions to review as JSON lines: near misses, shadow hits, and pairs with feedback.

    Label each with `same` (true or false) and pass the file to `rag-serving calibrate`.

    Example: rag-serving notes --kind near_miss > pairs.jsonl
    """
    with RagClient.from_env() as client:
        for note in client.notes():
            if kind in (None, note.kind):
                click.echo(note.model_dump_json())


main.add_command(calibrate_command)
main.add_command(doctor)
main.add_command(keys)


@main.command(short_help="Serve answers over HTTP.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65_535), default=8000, show_default=True, help="Port to listen on.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 256), help="Worker processes.")
@click.option(
    "--open",
    "open_to_all",
    is_flag=True,
    help="Serve without API keys: anyone who can reach the port can query every shard.",
)
def serve(host: str, port: int, workers: int, open_to_all: bool) -> None:
    """Serve answers over HTTP, with API keys from RAG_HTTP_KEYS (needs rag-shards[http]).

    Example: rag-serving serve --port 8080 --workers 4
    """
    require_posix()
    _require_free(host, port)
    for module in ("fastapi", "prometheus_client", "uvicorn"):
        require_module(module, "http", "the service")
    from rag_serving.http.server import serve as run

    run(host, port, workers=workers, open_to_all=open_to_all)


@main.command("mcp", short_help="Serve agents by the Model Context Protocol.")
def serve_mcp() -> None:
    """Serve agents by the Model Context Protocol (MCP) on standard input and output.

    The tools are search, ask, read_document and list_shards. An agent's configuration names this command. The service
    has the same tools at /mcp.

    Example: rag-serving mcp
    """
    require_module("mcp", "mcp", "the MCP server")
    from rag_serving.clients.mcp_server import mcp_server

    async def run() -> None:
        async with client_of_environment() as client:
            await mcp_server(lambda: client).run_stdio_async()

    asyncio.run(run())


def _require_free(host: str, port: int) -> None:
    """Fail unless this process can listen there; uvicorn would find out only after the models are loaded."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            problem = f"port {port} on {host} is in use; stop the other program or choose another with --port"
        elif isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            problem = f"{host} is not an address of this machine; choose one with --host, such as 127.0.0.1 or 0.0.0.0"
        else:
            problem = f"cannot listen on port {port} of {host}: {error.strerror}; choose another with --port"
        raise NamedClickError(problem) from None


def render(answer: Answer) -> str:
    """Format an answer as text, with its sources, cache state and timings; what an extract marks is in bold."""
    text = answer.text
    for quote in answer.quotes:
        text = text.replace(f"**{quote.match}**", click.style(quote.match, bold=True))
    lines = [text, ""]
    lines += [f"  [{citation.number}] {place(citation)}  score {_score(citation)}" for citation in answer.citations]
    state = answer.cache
    if answer.similarity is not None and state == "semantic":
        state += f" (similarity {answer.similarity:.3f} with “{answer.cached_question}”)"
    elif answer.cache_reason is not None and state != "exact":
        state += f" ({answer.cache_reason})"
    lines.append(f"  cache: {state}   total: {answer.timings.get('total', 0):.1f} ms   " + _phases(answer))
    lines += [f"  note: {note}" for note in answer.notes if note not in answer.text]
    return "\n".join(lines)


def place(passage: Place) -> str:
    """Format the location of a passage on one line."""
    where = f"page {passage.page}, " if passage.page is not None else ""
    headings = passage.heading_path or ((passage.title,) if passage.title else ())
    heading = f" § {' › '.join(headings)}" if headings else ""
    stale = " (stale)" if passage.stale else ""
    return f"{passage.source}{heading} ({where}characters {passage.start}–{passage.end}) [{passage.shard}]{stale}"


def _score(passage: Place) -> str:
    return "  –  " if passage.score is None else f"{passage.score:.3f}"


def _phases(answer: Answer) -> str:
    return "  ".join(f"{phase} {value:.1f}" for phase, value in answer.timings.items() if phase != "total")


def _warn(degraded: tuple[str, ...]) -> None:
    if degraded:
        click.echo(f"note: {'; '.join(map(in_words, degraded))}", err=True)
