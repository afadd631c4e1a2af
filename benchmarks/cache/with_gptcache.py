"""GPTCache with sentence-transformers, vectors in Redis, and answers in SQLite, its default.

Its Redis storage for answers needs the JSON commands, which not every Redis has. It has no asynchronous methods, so
callers are threads. Its distance evaluation serves at a cosine of 0.2 and above by default; here it uses the threshold
of the other peer.
"""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from urllib.parse import urlsplit

from benchmarks.cache.contract import ANSWER, LEAST_COSINE, Ask, Task, answer


def prepare(task: Task) -> Ask:
    """Return an empty cache."""
    from gptcache import Cache, Config
    from gptcache.adapter.api import get, put
    from gptcache.embedding import SBERT
    from gptcache.manager import manager_factory
    from gptcache.processor.post import first
    from gptcache.processor.pre import get_prompt
    from gptcache.similarity_evaluation import SearchDistanceEvaluation

    server = urlsplit(task.redis)
    embedding = SBERT(str(task.model))
    manager = manager_factory(
        "sqlite,redis",
        data_dir=str(task.folder),
        vector_params={"dimension": embedding.dimension, "host": server.hostname, "port": str(server.port)},
        eviction_params={"max_size": 100_000},
    )
    cache = Cache()
    cache.init(
        pre_embedding_func=get_prompt,
        embedding_func=embedding.to_embeddings,
        data_manager=manager,
        similarity_evaluation=SearchDistanceEvaluation(max_distance=1.0),
        post_process_messages_func=first,
        config=Config(similarity_threshold=LEAST_COSINE),
    )

    def look(question: str) -> bool:
        if get(question, cache_obj=cache) is not None:
            return True
        put(question, ANSWER, cache_obj=cache)
        return False

    async def ask(question: str) -> bool:
        return await asyncio.to_thread(look, question)

    return ask


if __name__ == "__main__":
    answer(prepare, version("gptcache"))
