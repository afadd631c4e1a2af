"""Generate an answer with the language model, and check what it cites."""

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
    """What a model wrote, as it grows; `model` is the one that wrote it."""

    text: str = ""
    model: str = ""
    full: bool = False
    """Whether it ended because the answer may not be longer."""
    tokens: dict[str, int] = field(default_factory=dict[str, int])
    price: float | None = None
    """US dollars; None if no price or no usage is known."""


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A model behind litellm, and those that are asked when it fails. `completion` is litellm's own unless injected.

    With `process`, litellm is called there and not imported here.

    `timeout` is in seconds, for one model from the call to the last token, its retries included; `context_tokens`
    bounds what the passages of a prompt may take.
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
        """Import litellm, which takes seconds, before a question waits for it."""
        if self.process is not None:
            await self.process.warm()
        elif self.completion is None:
            await asyncio.to_thread(litellm_completion)

    async def stream(
        self, messages: Sequence[Mapping[str, str]], result: Generated, restart: Callable[[], None] | None = None
    ) -> AsyncIterator[str]:
        """Yield the answer's pieces as they come, and collect them in `result`; raises `ModelUnavailable`.

        A model that fails is followed by the next one, which begins anew: `restart` is called where the pieces so far
        are void.
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
                # litellm's errors come from every provider's own tree; all of them mean that there is no answer.
                failures.append(f"{name} ({type(error).__name__})")
                _log.warning("%s gave no answer: %s", name, type(error).__name__)
            else:
                if result.text.strip():
                    return
                failures.append(f"{name} (empty)")
        raise ModelUnavailable(f"no answer from {', '.join(failures)}")

    async def complete(self, messages: Sequence[Mapping[str, str]]) -> Generated:
        """The whole of what the first model that answers says; raises `ModelUnavailable`."""
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
        """End the process, if there is one."""
        if self.process is not None:
            await self.process.close()


async def generate(
    model: LanguageModel, question: str, hits: Sequence[Hit], emit: Callable[[Event], None] | None = None
) -> Answer:
    """An answer written by the model, with the citations it gave; numbers that name no source are dropped and counted.

    Emits a `Delta` for each piece, and a `Restart` where they are void. Raises `ModelUnavailable`.
    """
    tell: Callable[[Event], None] = emit or _ignored
    result = Generated()
    messages = answer_messages(question, hits)
    async for piece in model.stream(messages, result, restart=lambda: tell(Restart())):
        tell(Delta(text=piece))
    text, named, invented = checked_citations(result.text, len(hits))
    if not text:
        raise ModelUnavailable(f"{result.model} gave nothing but citations")
    not_found = NOT_FOUND.rstrip(".") in text
    cited = [hit for number, hit in enumerate(hits, start=1) if number in named]
    return Answer(
        question=question,
        text=text,
        # A model that cites nothing has still seen all of the sources; they are shown, unless it found nothing there.
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


def _ignored(event: Event) -> None:
    """Who does not follow the answer in the making hears of it at its end."""
