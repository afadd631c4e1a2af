"""A process that asks one question many times concurrently, for tests with several processes.

``python -m tests.asking_process LAKE REDIS_URL MODEL ASKERS QUESTION`` prints "ready", waits for a line, asks, and
prints one JSON object: the texts, the cache states, the answers with tokens, and the model calls.
"""

from __future__ import annotations

import asyncio
import json
import sys
import warnings

from rag_serving.answering.generation import LanguageModel
from rag_serving.clients.lake import AsyncRagClient
from rag_serving.settings import ServingSettings


async def ask(lake: str, redis_url: str, model: str, askers: int, question: str) -> None:
    """Ask the question `askers` times and print the results."""
    settings = ServingSettings.model_validate(
        {"lake_uri": lake, "redis_url": redis_url, "cache_prefix": "test", "cache_timeout": 5}
    )
    async with AsyncRagClient(settings, model=LanguageModel(model, timeout=60, retries=0, max_tokens=100)) as client:
        await client.warm()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        answers = await asyncio.gather(*(client.ask(question) for _ in range(askers)))
        calls = client.stats().get("model_calls", 0)
    result = {
        "texts": sorted({answer.text for answer in answers}),
        "states": sorted({answer.cache for answer in answers}),
        "paid": sum(bool(answer.tokens) for answer in answers),
        "calls": calls,
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    asyncio.run(ask(*sys.argv[1:4], int(sys.argv[4]), sys.argv[5]))
