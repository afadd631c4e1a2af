"""Chat completions by litellm, reduced to plain parts of an answer.

Everything that depends on the objects of its streams belongs here. litellm is imported on the first call, because that
takes seconds and 200 MiB.
"""

import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypedDict

from rag_serving.requirements import needs_extra

Completion = Callable[..., Awaitable[Any]]
Price = Callable[[str, int, int], float | None]
"""Maps a model's name, prompt tokens and completion tokens to US dollars; None if the price is unknown."""


class AnswerPart(TypedDict, total=False):
    """A part of a streamed answer; JSON-serializable."""

    text: str
    full: bool
    """The answer was cut at its maximum length."""
    tokens: dict[str, int]
    """Counts of ``prompt`` and ``completion`` tokens."""
    price: float | None
    """US dollars."""


async def answer_parts(
    call: dict[str, Any], completion: Completion | None = None, price: Price | None = None
) -> AsyncGenerator[AnswerPart]:
    """Stream `litellm.acompletion(**call)` as parts.

    `completion` and `price` replace litellm's functions. Raises litellm's errors, and `ConnectionError` if the stream
    breaks off.
    """
    completion, price = completion or litellm_completion(), price or litellm_price
    stream = await completion(**call)
    async for chunk in stream:
        part = AnswerPart()
        if (usage := getattr(chunk, "usage", None)) is not None:
            part["tokens"] = {"prompt": usage.prompt_tokens, "completion": usage.completion_tokens}
            part["price"] = price(call["model"], usage.prompt_tokens, usage.completion_tokens)
        if chunk.choices:
            if chunk.choices[0].delta.content:
                part["text"] = chunk.choices[0].delta.content
            if getattr(chunk.choices[0], "finish_reason", None) == "length":
                part["full"] = True
        if part:
            yield part
    if _was_cut(stream):
        raise ConnectionError("the stream ended before the answer was complete")


def _was_cut(stream: Any) -> bool:
    """Return whether the provider sent no finish reason; litellm makes one up when the connection just closes."""
    reasons = ("received_finish_reason", "intermittent_finish_reason")
    return all(getattr(stream, name, "unknown") is None for name in reasons)


def litellm_completion() -> Completion:
    """Import litellm (takes seconds) and return its `acompletion`."""
    return import_litellm().acompletion


def litellm_price(model: str, prompt: int, completion: int) -> float | None:
    """Return the price in US dollars by litellm's packaged price list; None if the model is not in it."""
    try:
        costs = import_litellm().cost_per_token(model=model, prompt_tokens=prompt, completion_tokens=completion)
    except Exception:  # noqa: BLE001 - litellm raises many unrelated classes for unknown models
        return None
    return round(sum(costs), 8)


def import_litellm() -> Any:
    """Import litellm without the download of a price list that it starts with by default; raises `MissingExtra`."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    with needs_extra("llm", "a hosted model"):
        import litellm
    return litellm
