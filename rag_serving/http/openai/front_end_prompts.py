"""Prompts that chat front ends send beside the chat, for titles, tags and the like.

They are no questions about the documents, so they go to the language model without a search, cache or citations. Only
messages that begin like the default prompts of Open WebUI and LibreChat are recognized.
"""

import re
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING

from rag_serving.errors import ModelUnavailable
from rag_serving.events import Event, replayed
from rag_serving.results import ANSWER_CUT, MODEL_UNAVAILABLE, Answer

if TYPE_CHECKING:
    from rag_serving.clients.lake import AsyncRagClient

_TITLE = "%title%"
_TASK = "### Task:\n"
_REPLY_WITHOUT_MODEL: Mapping[str, str] = {
    f"{_TASK}Generate a concise, 3-5 word title": f'{{"title": "{_TITLE}"}}',
    f"{_TASK}Generate 1-3 broad tags": '{"tags": []}',
    f"{_TASK}Suggest 3-5 relevant follow-up questions": '{"follow_ups": []}',
    f"{_TASK}Analyze the chat history to determine the necessity of generating search queries": '{"queries": []}',
    f"{_TASK}You are an autocompletion system": '{"text": ""}',
    "Your task is to reflect the speaker's likely facial expression": "💬",
    "Provide a concise, 5-word-or-less title for the conversation": _TITLE,
}
"""Beginnings of the prompts, each with the reply if no language model is available."""
_FIRST_QUESTION = re.compile(r"^\s*User:\s*(.+)", re.IGNORECASE | re.MULTILINE)
_TITLE_WORDS = 6
_MOST_PROMPT_CHARACTERS = 16_000
_MOST_REPLY_CHARACTERS = 2_000


def is_front_end_prompt(text: str) -> bool:
    """Return whether a message is a prompt of a chat front end."""
    return _reply_without_model(text) is not None


async def reply_events(client: "AsyncRagClient", prompt: str) -> AsyncGenerator[Event]:
    """Yield the events of the reply to a prompt of a chat front end; raises `Overloaded`."""
    half = _MOST_PROMPT_CHARACTERS // 2  # the task is at its beginning and the conversation at its end
    shortened = prompt if len(prompt) <= _MOST_PROMPT_CHARACTERS else f"{prompt[:half]}\n…\n{prompt[-half:]}"
    answer = Answer(
        question="",
        text=_reply_without_model(prompt) or "",
        citations=(),
        kind="none",
        model=None,
        cache="bypass",
        degraded=(),
    )
    try:
        generated = await client.complete([{"role": "user", "content": shortened}])
    except ModelUnavailable:
        answer = answer.model_copy(update={"degraded": (MODEL_UNAVAILABLE,)})
    else:
        if generated is not None:
            update = {
                "text": generated.text[:_MOST_REPLY_CHARACTERS],
                "kind": "generated",
                "model": generated.model,
                "tokens": generated.tokens,
                "cost": generated.price,
                "degraded": (ANSWER_CUT,) if generated.finish == "length" else (),
            }
            answer = answer.model_copy(update=update)
    for event in replayed(answer):
        yield event


def _reply_without_model(prompt: str) -> str | None:
    prompt = prompt.lstrip()
    for beginning, reply in _REPLY_WITHOUT_MODEL.items():
        if prompt.startswith(beginning):
            return reply.replace(_TITLE, _title_of(prompt))
    return None


def _title_of(prompt: str) -> str:
    """Return the first words of the first question that a prompt quotes."""
    question = _FIRST_QUESTION.search(prompt)
    words: list[str] = re.findall(r"[\w'’-]+", question[1]) if question is not None else []
    return " ".join(words[:_TITLE_WORDS]) or "New chat"
