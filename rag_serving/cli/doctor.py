"""The command `rag-serving doctor`: checks what questions need, and says what is wrong with it."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import click

from rag_serving.errors import CacheUnavailable, LakeUnavailable, RagError
from rag_serving.settings import ServiceSettings, ServingSettings

_QUESTION = "Reply with the word ready."


@click.command("doctor", short_help="Check the lake, the cache and the language model.")
def doctor() -> None:
    """Check that the lake, the cache and each language model work, by asking each model one question.

    Exits with status 1 if something does not work. Nothing is printed of keys.

    Example: RAG_LLM_MODEL=gpt-5 rag-serving doctor
    """
    service = ServiceSettings.from_env().url
    if service is not None:
        click.echo(f"RAG_SERVICE_URL is set, so questions go to {service}; this checks the settings of this process\n")
    settings = ServingSettings.from_env()
    logging.getLogger("rag_serving").setLevel(logging.ERROR)  # warnings are told below
    if not asyncio.run(_all_work(settings)):
        raise SystemExit(1)


async def _all_work(settings: ServingSettings) -> bool:
    checks: list[tuple[str, Callable[[], Awaitable[str]]]] = [("lake", lambda: _lake(settings))]
    from rag_serving.clients.factory import configured_model

    model = configured_model(settings)
    if model is None:
        click.echo("ok      model: none is configured (RAG_LLM_MODEL), so answers are extracts")
    else:
        names = (model.name, *model.fallbacks)
        checks += [(f"model {name}", lambda name=name: _model(settings, name)) for name in names]
    return all([await _works(name, check) for name, check in checks])


async def _works(name: str, check: Callable[[], Awaitable[str]]) -> bool:
    try:
        told = await check()
    except RagError as error:
        click.echo(f"FAILED  {name}: {str(error).removeprefix('every language model failed: ')}")
        return False
    click.echo(f"ok      {name}: {told}")
    return True


async def _lake(settings: ServingSettings) -> str:
    from rag_serving.clients.lake import AsyncRagClient

    async with AsyncRagClient(settings.model_copy(update={"llm_model": None, "rerank_model": None})) as client:
        health = await client.health()
    if not health.shards:
        raise LakeUnavailable(
            f"nothing is published in {settings.lake_uri}, which exists; check RAG_LAKE_URI, "
            "or run `rag-assets backfill`"
        )
    if health.cache == "unavailable":
        raise CacheUnavailable("Redis does not answer, so nothing is cached; check RAG_REDIS_URL")
    return f"{health.shards} published shards in {settings.lake_uri}; cache: {health.cache}"


async def _model(settings: ServingSettings, name: str) -> str:
    """Ask one model, without its fallbacks; raises `ModelUnavailable`."""
    from rag_serving.answering.generation import LanguageModel

    model = LanguageModel(name, settings.llm_timeout, settings.llm_retries, settings.llm_max_tokens)
    started = time.perf_counter()
    generated = await model.complete([{"role": "user", "content": _QUESTION}])
    took = time.perf_counter() - started
    return f"answered in {took:.1f} s: {' '.join(generated.text.split())[:60]!r}"
