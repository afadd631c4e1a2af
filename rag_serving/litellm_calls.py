"""Calls of litellm's chat completions, reduced to the plain parts of an answer that the rest of the package reads.

Everything that depends on litellm's own objects belongs here. litellm itself is imported by the first call: it takes
seconds and 200 MiB.
"""

import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypedDict

Completion = Callable[..., Awaitable[Any]]
Price = Callable[[str, int, int], float | None]
"""US dollars for a model's name, prompt tokens and completion tokens; None if no price is known."""


class AnswerPart(TypedDict, total=False):
    """A part of a streamed answer, as JSON holds it."""

    text: str
    full: bool
    """The answer ended because it reached its maximum length."""
    tokens: dict[str, int]
    """Numbers of ``prompt`` and ``completion`` tokens."""
    price: float | None
    """US dollars for those tokens."""


async def answer_parts(
    call: dict[str, Any], completion: Completion | None = None, price: Price | None = None
) -> AsyncGenerator[AnswerPart]:
    """Stream `litellm.acompletion(**call)` as parts.

    `completion` and `price` replace litellm's own functions. Raises what litellm raises, and `ConnectionError` if the
    stream ends before the answer does.
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
        raise ConnectionError("the stream ended before the answer did")


def _was_cut(stream: Any) -> bool:
    """Tell whether litellm saw no finish reason: it makes one up where a provider's connection just closes."""
    reasons = ("received_finish_reason", "intermittent_finish_reason")
    return all(getattr(stream, name, "unknown") is None for name in reasons)


def litellm_completion() -> Completion:
    """Import litellm, which takes seconds, and return its `acompletion`."""
    return _litellm().acompletion


def litellm_price(model: str, prompt: int, completion: int) -> float | None:
    """Return the price by the list in litellm's release."""
    try:
        costs = _litellm().cost_per_token(model=model, prompt_tokens=prompt, completion_tokens=completion)
    except Exception:  # noqa: BLE001 - litellm has a class of its own for each way not to know a model
        return None
    return round(sum(costs), 8)


def _litellm() -> Any:
    # Without this, importing litellm fetches a price list from the network and waits for it.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    return litellm
