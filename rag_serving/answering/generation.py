"""Generate an answer with the language model, and check its citations."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from rag_serving.answering.citations import checked_citations, citations_of
from rag_serving.answering.llm_process import ModelProcess
from rag_serving.answering.marks import ANSWER_CUT, INVENTED_CITATIONS
from rag_serving.answering.prompts import NOT_FOUND, answer_messages
from rag_serving.errors import ModelUnavailable
from rag_serving.events import Delta, Event, Restart
from rag_serving.litellm_calls import AnswerPart, Completion, Price, answer_parts, litellm_completion
from rag_serving.results import Answer, Hit

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Generated:
    """The text a model has written so far; `model` is its name."""

    text: str = ""
    model: str = ""
    full: bool = False
    """Whether the text was cut at the maximum length."""
    tokens: dict[str, int] = field(default_factory=dict[str, int])
    price: float | None = None
    """US dollars; None if the price or the usage is unknown."""


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A model reached by litellm, with its fallbacks. `completion` and `price` replace litellm's functions.

    `timeout` limits one model, in seconds from the call to the last token, including retries. `context_tokens` limits
    the passages of a prompt. With `process`, litellm is called there and not imported here.
    """

    name: str
    timeout: float
    retries: int
    max_tokens: int
    fallbacks: tuple[str, ...] = ()
    context_tokens: int = 3_000
    completion: Completion | None = None
    price: Price | None = None
    process: ModelProcess | None = None

    async def warm(self) -> None:
        """Import litellm now, because it takes seconds."""
        if self.process is not None:
            await self.process.warm()
        elif self.completion is None:
            await asyncio.to_thread(litellm_completion)

    async def stream(
        self, messages: Sequence[Mapping[str, str]], result: Generated, restart: Callable[[], None] | None = None
    ) -> AsyncIterator[str]:
        """Yield the answer's pieces and collect them in `result`; raises `ModelUnavailable`.

        When a model fails, the next one starts over; `restart` is called if pieces were already yielded.
        """
        failures: list[str] = []
        for name in (self.name, *self.fallbacks):
            if result.text and restart is not None:
                restart()
            result.text, result.tokens, result.model, result.full, result.price = "", {}, name, False, None
            try:
                async for piece in self._stream_one(name, messages, result):
                    yield piece
            except Exception as error:  # noqa: BLE001
                # litellm's errors have no common base class; whatever they are, there is no answer.
                failures.append(f"{name} ({type(error).__name__})")
                _log.warning("language model %s failed: %s", name, type(error).__name__)
            else:
                if result.text.strip():
                    return
                failures.append(f"{name} (empty)")
        raise ModelUnavailable(f"every language model failed: {', '.join(failures)}")

    async def complete(self, messages: Sequence[Mapping[str, str]]) -> Generated:
        """Return the complete answer of the first model that answers; raises `ModelUnavailable`."""
        result = Generated()
        async for _ in self.stream(messages, result):
            pass
        return result

    async def _stream_one(
        self, name: str, messages: Sequence[Mapping[str, str]], result: Generated
    ) -> AsyncIterator[str]:
        parts = await self._parts(name, messages)
        async with asyncio.timeout(self.timeout), aclosing(parts):
            async for part in parts:
                result.tokens = part.get("tokens", result.tokens)
                result.price = part.get("price", result.price)
                result.full = result.full or part.get("full", False)
                if "text" in part:
                    result.text += part["text"]
                    yield part["text"]

    async def _parts(self, name: str, messages: Sequence[Mapping[str, str]]) -> AsyncGenerator[AnswerPart]:
        call: dict[str, Any] = {
            "model": name,
            "messages": list(messages),
            "timeout": self.timeout,
            "num_retries": self.retries,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.process is not None:
            return self.process.answer_parts(call)
        completion = self.completion or await asyncio.to_thread(litellm_completion)
        return answer_parts(call, completion, self.price)

    async def close(self) -> None:
        """Stop the model's process, if there is one."""
        if self.process is not None:
            await self.process.close()


async def generate(
    model: LanguageModel, question: str, hits: Sequence[Hit], emit: Callable[[Event], None] | None = None
) -> Answer:
    """Generate an answer with checked citations; citations of unknown sources are dropped and counted.

    Emits a `Delta` for each piece, and a `Restart` to void them. Raises `ModelUnavailable`.
    """
    emit = emit or _drop
    result = Generated()
    messages = answer_messages(question, hits)
    async for piece in model.stream(messages, result, restart=lambda: emit(Restart())):
        emit(Delta(text=piece))
    text, named, invented = checked_citations(result.text, len(hits))
    if not text:
        raise ModelUnavailable(f"{result.model} returned nothing but citations")
    not_found = NOT_FOUND.rstrip(".") in text
    cited = [hit for number, hit in enumerate(hits, start=1) if number in named]
    return Answer(
        question=question,
        text=text,
        # An answer without citations may rest on any source, so all of them are shown.
        citations=citations_of(hits, cited or ([] if not_found else hits)),
        kind="none" if not_found and not cited else "generated",
        model=result.model,
        tokens=result.tokens,
        cost=result.price,
        degraded=(
            *((f"{INVENTED_CITATIONS}:{invented}",) if invented else ()),
            *((ANSWER_CUT,) if result.full else ()),
        ),
    )


def _drop(event: Event) -> None:
    """Drop the event (default sink)."""
