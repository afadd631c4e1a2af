"""RedisVL's `SemanticCache` with its own vectorizer and its asynchronous methods."""

from __future__ import annotations

from importlib.metadata import version

from benchmarks.cache.contract import ANSWER, LEAST_COSINE, Ask, Task, answer


def prepare(task: Task) -> Ask:
    """Return an empty cache."""
    from redisvl.extensions.cache.llm import SemanticCache
    from redisvl.utils.vectorize import HFTextVectorizer

    vectorizer = HFTextVectorizer(model=str(task.model), device="cpu")
    cache = SemanticCache(
        name="redisvl", distance_threshold=1 - LEAST_COSINE, vectorizer=vectorizer, redis_url=task.redis, overwrite=True
    )

    async def ask(question: str) -> bool:
        if await cache.acheck(prompt=question):
            return True
        await cache.astore(prompt=question, response=ANSWER)
        return False

    return ask


if __name__ == "__main__":
    answer(prepare, version("redisvl"))
