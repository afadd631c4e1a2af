"""A perfect language model: if its prompt contains the key sentence of the question, it quotes and cites it.

The right answer to a question, for the current documents, is therefore this model's answer without a cache.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from benchmarks.trace.documents import Documents
from benchmarks.trace.questions import Questions, squeezed
from rag_serving.answering.generation import LanguageModel
from rag_serving.answering.prompts import NOT_FOUND

_SOURCE = re.compile(r"\[(\d+)\] ")
_CITATION = re.compile(r"\s*\[\d+\]\s*$")


class Quoting:
    """Completes prompts, and counts its calls."""

    def __init__(self, questions: Questions, documents: Documents) -> None:
        self._questions = questions
        self._documents = documents
        self.calls = 0

    async def __call__(self, **arguments: Any) -> AsyncIterator[Any]:
        self.calls += 1
        sources, _, question = str(arguments["messages"][1]["content"]).rpartition("\n\nQuestion: ")
        return _said(self._answer(squeezed(sources), question))

    def _answer(self, sources: str, question: str) -> str:
        base = self._questions.of(question)
        for reading in reversed(self._documents.readings.get(base.number, [])):
            at = sources.find(reading)
            if at >= 0:
                numbers = _SOURCE.findall(sources[:at])
                return f"{reading} [{numbers[-1]}]"
        return NOT_FOUND


async def _said(text: str) -> AsyncIterator[Any]:
    yield SimpleNamespace(choices=[SimpleNamespace(delta=SimpleNamespace(content=text))])


def language_model(completion: Quoting) -> LanguageModel:
    """Return a language model with this completion."""
    return LanguageModel("quoting", timeout=30, retries=0, max_tokens=600, completion=completion)


def plain(text: str) -> str:
    """Return an answer without the number of its citation, which depends on the order of the passages."""
    return _CITATION.sub("", text)
