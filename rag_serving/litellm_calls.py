"""Chat completions by litellm, reduced to plain parts of an answer.

Everything that depends on litellm belongs here: the objects of its streams, its errors, and what a model refuses.
litellm is imported on the first call, because that takes seconds and 200 MiB.
"""

import asyncio
import logging
import os
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypedDict

from rag_serving.requirements import needs_extra

_log = logging.getLogger(__name__)

Completion = Callable[..., Awaitable[Any]]
Price = Callable[[str, int, int], float | None]
"""Maps a model's name, prompt tokens and completion tokens to US dollars; None if the price is unknown."""

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
"""Bounds of the pause before a retry, in seconds."""
_LONGEST_MESSAGE = 200
_SHARED_WORDS = 5
"""Adjacent words of a prompt from which on a provider's message is taken to repeat it."""
_TRANSIENT_STATUS = frozenset([408, 409, 425, 429, 500, 502, 503, 504, 529])


class AnswerPart(TypedDict, total=False):
    """A part of a streamed answer; JSON-serializable. A part without any field says that the model is at work."""

    text: str
    finish: str
    """Why the model ended: ``stop``, ``length`` or ``content_filter``."""
    tokens: dict[str, int]
    """Counts of ``prompt`` and ``completion`` tokens."""
    price: float | None
    """US dollars."""


class ModelError(Exception):
    """A failed call of a language model: the error's name, and what the provider said of it."""

    def __init__(self, name: str, message: str = "", *, too_long: bool = False) -> None:
        super().__init__(f"{name}: {message}" if message else name)
        self.name = name
        self.message = message
        self.too_long = too_long
        """Whether the prompt did not fit into the model's context."""


async def answer_parts(
    call: Mapping[str, Any], completion: Completion | None = None, price: Price | None = None
) -> AsyncGenerator[AnswerPart]:
    """Stream `litellm.acompletion(**call)` as parts; `completion` and `price` replace litellm's functions.

    Parameters that the model refuses are left out or replaced, which is remembered for its next calls. Before the first
    part, transient errors are retried ``call["num_retries"]`` times. Raises `ModelError`.
    """
    completion, price = completion or litellm_completion(), price or litellm_price
    known = _adapted.setdefault(str(call["model"]), [])
    failures = 0
    while True:
        began = False
        try:
            async for part in _parts(_with(call, known), completion, price):
                began = began or "text" in part
                yield part
            return
        except Exception as error:
            change = None if began else _change_for(error, known)
            if change is not None:
                known.append(change)
                _log.info("%s refuses %s; calling it without", call["model"], change)
                continue
            if began or failures >= call.get("num_retries", 0) or not is_transient(error):
                raise model_error(error, call["messages"]) from error
            failures += 1
            yield AnswerPart()
            await asyncio.sleep(_pause(error, failures))


async def _parts(call: Mapping[str, Any], completion: Completion, price: Price) -> AsyncIterator[AnswerPart]:
    answer = await completion(**call)
    text = ""
    async for chunk in _chunks(answer):
        part = AnswerPart()
        if (usage := getattr(chunk, "usage", None)) is not None:
            part["tokens"] = {"prompt": usage.prompt_tokens, "completion": usage.completion_tokens}
            part["price"] = price(call["model"], usage.prompt_tokens, usage.completion_tokens)
        for choice in chunk.choices[:1]:
            said: Any = getattr(choice, "delta", None) or getattr(choice, "message", None)
            if content := getattr(said, "content", None):
                part["text"] = content
                text += content
            if getattr(choice, "finish_reason", None):
                part["finish"] = choice.finish_reason
        yield part
    if _was_given_no_reason(answer) and not _looks_complete(text):
        raise ConnectionError("the stream ended before the answer was complete")


async def _chunks(answer: Any) -> AsyncIterator[Any]:
    """Yield the chunks of a stream, or the only one of an answer that was not streamed."""
    if hasattr(answer, "__aiter__"):
        async for chunk in answer:
            yield chunk
    else:
        yield answer


def _was_given_no_reason(stream: Any) -> bool:
    """Return whether the provider sent no finish reason; litellm makes one up when the connection just closes."""
    reasons = ("received_finish_reason", "intermittent_finish_reason")
    return all(getattr(stream, name, "unknown") is None for name in reasons)


def _looks_complete(text: str) -> bool:
    """Return whether a text ends like an answer. Some servers never send a finish reason."""
    return re.search(r"[.!?…。！？)\]\"'”’»`|]\s*$", text) is not None


# --- what a model refuses ----------------------------------------------------------------------------------------

_adapted: dict[str, list[str]] = {}
"""What each model refuses, in the order in which it said so."""

_REFUSALS: Sequence[tuple[str, re.Pattern[str]]] = (
    ("stream_options", re.compile(r"stream_options|include_usage")),
    ("max_tokens", re.compile(r"max_tokens|max_completion_tokens|max tokens")),
    ("temperature", re.compile(r"temperature")),
    ("the system role", re.compile(r"system.{0,30}(?:role|message|prompt|instruction)|(?:role|roles).{0,40}system")),
    ("streaming", re.compile(r"\bstream(?:ing|ed)?\b")),
)
"""What may be refused, and how providers name it. The order matters: `stream_options` contains `stream`."""


def _change_for(error: BaseException, known: Sequence[str]) -> str | None:
    """Return the refused part of a call, if the error names one that can be left out."""
    status = getattr(error, "status_code", None)
    if not (status in (400, 404, 405, 415, 422, 501) or isinstance(error, TypeError)):
        return None
    message = str(error).lower()
    if "refus" in message and "content" in message:
        return None
    for name, pattern in _REFUSALS:
        if pattern.search(message) and not _is_too_long(error):
            if name not in known:
                return name
            if name == "max_tokens" and "any maximum" not in known:
                return "any maximum"
    return None


def _with(call: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    """Return the call as the model accepts it. litellm does not retry: `answer_parts` does, for what can succeed."""
    changed: dict[str, Any] = {**call, "num_retries": 0, "max_retries": 0, "drop_params": True}
    if "temperature" in known:
        del changed["temperature"]
    if "max_tokens" in known:
        changed["max_completion_tokens"] = changed.pop("max_tokens")
    if "any maximum" in known:
        del changed["max_completion_tokens"]
    if "stream_options" in known:
        del changed["stream_options"]
    if "streaming" in known:
        changed["stream"] = False
        changed.pop("stream_options", None)
    if "the system role" in known:
        messages: list[dict[str, str]] = changed["messages"]
        joined = "\n\n".join(message["content"] for message in messages[:2])
        changed["messages"] = [{"role": "user", "content": joined}, *messages[2:]]
    return changed


# --- errors ------------------------------------------------------------------------------------------------------


def is_transient(error: BaseException) -> bool:
    """Return whether the same call may succeed later."""
    message = str(error).lower()
    if any(word in message for word in ("insufficient_quota", "exceeded your current quota", "billing")):
        return False
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return status in _TRANSIENT_STATUS
    return isinstance(error, (ConnectionError, TimeoutError))


def _pause(error: BaseException, failures: int) -> float:
    """Return the seconds to wait before a retry: what the provider asks for, or longer each time, with jitter."""
    headers: Mapping[str, str] = getattr(getattr(error, "response", None), "headers", None) or {}
    asked = headers.get("retry-after", "")
    if asked.isdecimal():
        return min(float(asked), LONGEST_PAUSE)
    return random.uniform(0.5, 1) * min(FIRST_PAUSE * 2.0 ** (failures - 1), LONGEST_PAUSE)  # noqa: S311


def model_error(error: BaseException, messages: Sequence[Mapping[str, Any]]) -> ModelError:
    """Return an error that can be logged and shown: without the prompt, keys and litellm's prefixes."""
    prompts = [str(message.get("content", "")) for message in messages]
    told = _provider_message(str(error), prompts) if isinstance(getattr(error, "status_code", None), int) else ""
    return ModelError(type(error).__name__, told, too_long=_is_too_long(error))


def _provider_message(text: str, prompts: Sequence[str]) -> str:
    """Return the first line of what the provider said; nothing if it repeats the prompt."""
    told = re.search(r"""["']message["']\s*:\s*(["'])(.+?)\1\s*[,}]""", text)
    message = told[2] if told else next(iter(text.strip().splitlines()), "")
    message = re.split(r"\s*(?:Original exception|Received Model Group)\b", message)[0]
    while message != (message := re.sub(r"^(?:litellm\.)?\w+(?:Error|Exception|Timeout)\s*(?::|-)\s*", "", message)):
        pass
    message = re.sub(r"\b(?:sk|rag|key|pk|gsk|xai)[-_][\w*.…-]{6,}|\bBearer\s+\S+|[\w+/=*-]{24,}", "…", message)
    words = message.casefold().split()
    asked = " ".join(" ".join(prompts).casefold().split())
    runs = (" ".join(words[at : at + _SHARED_WORDS]) for at in range(len(words) - _SHARED_WORDS + 1))
    return "" if any(run in asked for run in runs) else message.strip()[:_LONGEST_MESSAGE]


def _is_too_long(error: BaseException) -> bool:
    if type(error).__name__ == "ContextWindowExceededError":
        return True
    message = str(error).lower()
    status = getattr(error, "status_code", None)
    return status in (400, 413, 422, 500) and any(
        sign in message
        for sign in (
            "context length",
            "context window",
            "context size",
            "context_length",
            "maximum context",
            "prompt is too long",
            "too many tokens",
            "too many input tokens",
            "input is too long",
            "exceeds the available context",
            "request too large",
        )
    )


# --- litellm -----------------------------------------------------------------------------------------------------


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
    litellm.suppress_debug_info = True  # it prints advice to report bugs
    return litellm
