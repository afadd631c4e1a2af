"""Turn the messages of OpenAI's protocol into a question and its history.

Messages of other roles than the user's and the assistant's are skipped: callers cannot change how sources are used, and
the results of tools are not sources. Conversations of any length are accepted. Of a question that is too long, the
beginning of its first paragraph and the end of its last one are kept: around a pasted text, that is where people ask.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rag_serving.errors import InvalidArgument, UnsupportedParameter
from rag_serving.http.openai.answer_fields import FOOTER_START
from rag_serving.http.openai.schemas import Item, Message
from rag_serving.results import Turn
from rag_serving.validation import MAX_HISTORY_CHARACTERS, MAX_QUESTION_CHARACTERS, MAX_TURNS

_MOST_TURN_CHARACTERS = MAX_HISTORY_CHARACTERS // (2 * MAX_TURNS)
"""Characters that are kept of each question and answer of the history, so that all of them are within the limit."""
_KEPT_CHARACTERS = 500
"""Characters kept of the first and of the last paragraph; embedding models read about a thousand."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """The last message of a conversation and the turns before it, oldest first."""

    last: str
    turns: tuple[Turn, ...] = ()

    @property
    def is_too_long(self) -> bool:
        """Whether the question is only a part of the last message."""
        return len(self.last) > MAX_QUESTION_CHARACTERS

    @property
    def question(self) -> str:
        """The last message, or its beginning and end."""
        if not self.is_too_long:
            return self.last
        paragraphs = re.split(r"\n\s*\n", self.last)
        return f"{paragraphs[0][:_KEPT_CHARACTERS]}\n…\n{paragraphs[-1][-_KEPT_CHARACTERS:]}"


def conversation_of(messages: Sequence[Message | Item]) -> Conversation:
    """Return the last message with the turns before it.

    Raises `InvalidArgument` unless it is the user's and has text, and `UnsupportedParameter` if it has an image.
    """
    dialogue = [message for message in messages if message.role == "user" or _is_answer(message)]
    if not dialogue or dialogue[-1].role != "user":
        raise InvalidArgument("the last message must be the user's question")
    last = dialogue[-1]
    if last.unreadable is not None:
        param = "messages" if isinstance(last, Message) else "input"
        raise UnsupportedParameter(
            f"{param}: the last message has a part of type {last.unreadable[:40]!r}; send only text", param
        )
    text = last.text.strip()
    if not text:
        raise InvalidArgument("the last message must contain a question")
    return Conversation(text, _turns(dialogue[:-1]))


def _is_answer(message: Message | Item) -> bool:
    """Return whether a message is an answer of the assistant, not only a call of a tool."""
    return message.role == "assistant" and bool(message.text)


def _turns(dialogue: Sequence[Message | Item]) -> tuple[Turn, ...]:
    turns: list[Turn] = []
    asked: list[str] = []
    for message in dialogue:
        if message.role == "user":
            asked.append(message.text)
        elif asked:
            question = "\n".join(asked)[:_MOST_TURN_CHARACTERS]
            answer = message.text.partition(FOOTER_START)[0][:_MOST_TURN_CHARACTERS]
            turns.append(Turn(question=question, answer=answer))
            asked = []
    return tuple(turns[-MAX_TURNS:])
