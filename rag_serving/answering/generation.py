"""Generate an answer with the language model, and check its citations."""

import asyncio
import logging
import os
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from rag_serving.answering.citations import checked_citations, citations_of
from rag_serving.answering.llm_process import ModelProcess
from rag_serving.answering.model_text import NO_ANSWER, ModelText
from rag_serving.answering.prompts import NOT_FOUND, answer_messages
from rag_serving.answering.unresponsive_models import UnresponsiveModels
from rag_serving.errors import ModelUnavailable
from rag_serving.events import Delta, Event, Restart
from rag_serving.litellm_calls import (
    AnswerPart,
    Completion,
    ModelError,
    Price,
    answer_parts,
    litellm_completion,
)
from rag_serving.results import (
    ANSWER_CUT,
    ANSWER_FILTERED,
    ANSWER_INCOMPLETE,
    FEWER_PASSAGES,
    INVENTED_CITATIONS,
    UNCITED,
    Answer,
    Hit,
)
from rag_serving.tracing import ModelCall

_log = logging.getLogger(__name__)

Messages = Sequence[Mapping[str, str]]

_MOST_ENDED = 10_000
_WORTH_KEEPING = 40
"""Characters from which on an answer that broke off is kept if no model completes one."""


@dataclass(slots=True)
class Generated:
    """The text a model has written so far; `model` is its name."""

    text: str = ""
    model: str = ""
    finish: str = "stop"
    """Why it ended: ``stop``, ``length`` or ``content_filter``; ``broken`` if it did not complete its answer."""
    problem: str = ""
    """Why it is broken."""
    refused: bool = False
    """Whether the model said that the sources do not answer the question."""
    prompt: int = 0
    """Which of the prompts was answered; others before it did not fit into the model's context."""
    tokens: dict[str, int] = field(default_factory=dict[str, int])
    price: float | None = None
    """US dollars; None if the price or the usage is unknown."""


class EndedCall(NamedTuple):
    """A call of a model that ended after `seconds`."""

    model: str
    outcome: Literal["answered", "failed", "cancelled"]
    seconds: float


class _OutOfTime(Exception):
    """The time for the whole answer is over."""


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A model reached by litellm, with its fallbacks. `completion` and `price` replace litellm's functions.

    `timeout` limits the silence of a model in seconds: until its first token, and between two. `context_tokens` limits
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
    keep_links: bool = False
    """Whether links and images that do not point to a source are kept in the text."""
    failures: Counter[str] = field(default_factory=Counter[str], compare=False)
    """Failed calls by model and kind of failure."""
    ended: deque[EndedCall] = field(default_factory=lambda: deque(maxlen=_MOST_ENDED), compare=False)
    """The latest calls; who reads them takes them out."""
    unresponsive: UnresponsiveModels = field(default_factory=UnresponsiveModels, compare=False)

    async def warm(self) -> None:
        """Import litellm now, because it takes seconds."""
        if self.process is not None:
            await self.process.warm()
        elif self.completion is None:
            await asyncio.to_thread(litellm_completion)

    @property
    def identity(self) -> dict[str, object]:
        """Everything of it that shapes an answer, as JSON: names, lengths, and the addresses of its providers."""
        addresses = {name: value for name, value in os.environ.items() if name.endswith(("_API_BASE", "_BASE_URL"))}
        return {
            "names": [self.name, *self.fallbacks],
            "max_tokens": self.max_tokens,
            "context_tokens": self.context_tokens,
            "addresses": addresses,
            "keep_links": self.keep_links,
        }

    @property
    def is_warm(self) -> bool:
        """Whether a call can begin at once, because litellm is imported."""
        if self.process is not None:
            return self.process.is_warm
        return self.completion is not None or "litellm" in sys.modules

    async def stream(
        self,
        prompts: Sequence[Messages],
        result: Generated,
        restart: Callable[[], None] | None = None,
        until: float | None = None,
        sources: Collection[str] = (),
    ) -> AsyncIterator[str]:
        """Yield the answer's pieces and collect them in `result`; raises `ModelUnavailable`.

        If a prompt does not fit into the context of a model, the next of `prompts` is tried. When a model fails, the
        next one starts over; `restart` is called if pieces that were already yielded are void. If no model completes
        its answer, or at `until` by the event loop's clock, what the last one wrote is kept as a broken answer. Models
        that did not respond several times in a row are bypassed.
        """
        failures: list[str] = []
        for name in (self.name, *self.fallbacks):
            if self.unresponsive.bypasses(name):
                failures.append(f"{name} (bypassed, because it does not respond)")
                continue
            if result.text and restart is not None:
                restart()
            result.text, result.model, result.finish, result.refused = "", name, "stop", False
            result.tokens, result.price = {}, None
            call, began, outcome = ModelCall(name), time.perf_counter(), "cancelled"
            try:
                text = ModelText(None if self.keep_links else sources)
                async for piece in self._stream_one(name, prompts, result, restart, until, text):
                    yield piece
            except _OutOfTime:
                outcome = "failed"
                self.failures[f"{name}:deadline"] += 1
                failures.append(f"{name} (not done before the deadline)")
                break
            except (ModelError, TimeoutError) as error:
                outcome = "failed"
                self.unresponsive.failed(name, error)
                self.failures[f"{name}:{error.name if isinstance(error, ModelError) else 'silent'}"] += 1
                failures.append(f"{name} ({_reason(error, self.timeout)})")
                _log.warning("language model %s failed: %s", name, _reason(error, self.timeout))
            else:
                self.unresponsive.responded(name)
                outcome = "answered"
                if result.text.strip() or result.refused:
                    return
                outcome = "failed"
                self.failures[f"{name}:no text"] += 1
                failures.append(f"{name} ({_why_empty(result)})")
            finally:
                call.ended(result.tokens, result.finish, failed=outcome == "failed")
                self.ended.append(EndedCall(name, outcome, time.perf_counter() - began))
        if len(result.text.strip()) >= _WORTH_KEEPING:
            _log.warning("keeping an incomplete answer: %s", "; ".join(failures))
            result.finish, result.problem = "broken", "; ".join(failures)
            return
        if result.text and restart is not None:
            restart()
        raise ModelUnavailable(f"every language model failed: {'; '.join(failures)}")

    async def complete(self, messages: Messages, until: float | None = None) -> Generated:
        """Return the complete answer of the first model that answers; raises `ModelUnavailable`."""
        result = Generated()
        async for _ in self.stream([messages], result, until=until):
            pass
        return result

    async def _stream_one(
        self,
        name: str,
        prompts: Sequence[Messages],
        result: Generated,
        restart: Callable[[], None] | None,
        until: float | None,
        text: ModelText,
    ) -> AsyncIterator[str]:
        for number, messages in enumerate(prompts):
            result.prompt = number
            try:
                async for piece in self._answered(name, messages, result, restart, until, text):
                    yield piece
            except ModelError as error:
                if not error.too_long or number + 1 == len(prompts):
                    raise
                _log.info("the prompt does not fit into the context of %s; trying with fewer passages", name)
            else:
                return

    async def _answered(
        self,
        name: str,
        messages: Messages,
        result: Generated,
        restart: Callable[[], None] | None,
        until: float | None,
        text: ModelText,
    ) -> AsyncIterator[str]:
        async with aclosing(self._parts_in_time(name, messages, until)) as parts:
            async for part in parts:
                result.tokens = part.get("tokens", result.tokens)
                result.price = part.get("price", result.price)
                result.finish = part.get("finish", result.finish)
                shown = text.feed(part["text"]) if "text" in part else ""
                if text.was_voided and restart is not None:
                    restart()
                text.was_voided = False
                result.text, result.refused = text.shown, text.refused
                if shown:
                    yield shown
        held = text.finish()
        result.text, result.refused = text.shown, text.refused
        if held:
            yield held

    async def _parts_in_time(self, name: str, messages: Messages, until: float | None) -> AsyncGenerator[AnswerPart]:
        """Yield the parts of one answer; raises `TimeoutError` after silence, and `_OutOfTime` at `until`."""
        loop = asyncio.get_running_loop()
        parts = await self._parts(name, messages)
        async with aclosing(parts):
            while True:
                silence = loop.time() + self.timeout
                limit = silence if until is None else min(silence, until)
                try:
                    async with asyncio.timeout_at(limit):
                        part = await anext(parts)
                except StopAsyncIteration:
                    return
                except TimeoutError as error:
                    if until is not None and loop.time() >= until:
                        raise _OutOfTime from error
                    raise
                yield part

    async def _parts(self, name: str, messages: Messages) -> AsyncGenerator[AnswerPart]:
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


def _reason(error: Exception, timeout: float) -> str:
    return f"silent for {timeout:g} s" if isinstance(error, TimeoutError) else str(error)


def _why_empty(result: Generated) -> str:
    if result.finish == "length":
        return "no answer within RAG_LLM_MAX_TOKENS; a model that reasons needs more"
    return "its content filter" if result.finish == "content_filter" else "empty"


async def generate(
    model: LanguageModel,
    question: str,
    hits: Sequence[Hit],
    emit: Callable[[Event], None] | None = None,
    *,
    until: float | None = None,
) -> Answer:
    """Generate an answer with checked citations; citations of unknown sources are dropped and counted.

    Emits a `Delta` for each piece, and a `Restart` to void them. `until` is by the event loop's clock. Raises
    `ModelUnavailable`, after which nothing that was emitted is valid.
    """
    emit = emit or _drop
    result = Generated()
    passages = _fewer_and_fewer(len(hits))
    prompts = [answer_messages(question, hits[:count]) for count in passages]
    sources = {target for hit in hits for target in (f"{hit.shard}/{hit.path}", hit.link) if target is not None}
    async for piece in model.stream(prompts, result, lambda: emit(Restart()), until, sources):
        emit(Delta(text=piece))
    shown = passages[result.prompt]
    refused = result.refused or NO_ANSWER in result.text or NOT_FOUND.rstrip(".") in result.text
    text, named, invented = checked_citations(result.text.replace(NO_ANSWER, ""), shown)
    if not text and not refused:
        emit(Restart())
        raise ModelUnavailable(f"{result.model} returned nothing but citations")
    marks = (
        *((f"{FEWER_PASSAGES}:{shown}",) if shown < len(hits) else ()),
        *((f"{INVENTED_CITATIONS}:{invented}",) if invented else ()),
        *_ending(result),
        *((UNCITED,) if not named and not refused else ()),
    )
    return Answer(
        question=question,
        text=text or NOT_FOUND,
        citations=citations_of(hits, [hit for number, hit in enumerate(hits, start=1) if number in named]),
        kind="none" if refused and not (named and not result.refused) else "generated",
        model=result.model,
        tokens=result.tokens,
        cost=result.price,
        degraded=marks,
    )


def _ending(result: Generated) -> tuple[str, ...]:
    """Return the mark of an answer that did not end by itself."""
    mark = _ENDINGS.get(result.finish)
    if mark is None:
        return ()
    return (f"{mark}:{result.problem}" if result.problem else mark,)


_ENDINGS = {"length": ANSWER_CUT, "content_filter": ANSWER_FILTERED, "broken": ANSWER_INCOMPLETE}


def _fewer_and_fewer(count: int) -> list[int]:
    """Return how many passages to try: all, then half of them, down to one."""
    counts = [count]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    return counts


def _drop(event: Event) -> None:
    """Drop the event (default sink)."""
