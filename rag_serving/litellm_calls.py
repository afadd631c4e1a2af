"""The only place that calls litellm for chat completions and their prices."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

Completion = Callable[..., Awaitable[Any]]
Price = Callable[[str, int, int], float | None]
"""US dollars for a model's name, prompt tokens and completion tokens; None where no price is known."""


def was_cut(stream: Any) -> bool:
    """Whether litellm saw no reason for the end: it makes one up where a provider's connection just closes."""
    reasons = ("received_finish_reason", "intermittent_finish_reason")
    return all(getattr(stream, name, "unknown") is None for name in reasons)


def litellm_completion() -> Completion:
    """litellm's own; importing it takes seconds."""
    # Without this, importing litellm fetches a price list from the network and waits for it.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    return litellm.acompletion


def litellm_price(model: str, prompt: int, completion: int) -> float | None:
    """The price by litellm's own list, as of its release."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    try:
        costs = litellm.cost_per_token(model=model, prompt_tokens=prompt, completion_tokens=completion)
    except Exception:  # noqa: BLE001 - one of its own classes for each way not to know a model
        return None
    return round(sum(costs), 8)
