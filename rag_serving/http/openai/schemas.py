"""Request bodies of OpenAI's protocol. Sampling options and other unknown fields are accepted and ignored.

What the service cannot do, such as JSON output, is accepted here and refused by name in `refusals`. Lists are refused
at their first invalid item, because an error for each of many items blocks a worker.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Required

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from rag_serving.api_schemas import FIRST_FAULT, ScopeFilter

MOST_MESSAGES = 2_000
_MOST_PARTS = 1_000
_QUESTION = "How many weeks of parental leave are on full pay?"
_READABLE = ("text", "input_text", "output_text", "refusal")


class Part(TypedDict, total=False):
    """A part of a message; only its text is read. A model of pydantic would take ten times as long."""

    type: Required[str]
    text: str | None
    refusal: str | None


class _Content(BaseModel):
    """A message or item whose content may be read."""

    content: str | Annotated[list[Part], Field(max_length=_MOST_PARTS), FIRST_FAULT] | None = None

    @property
    def text(self) -> str:
        """The content as one string; empty if there is none."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(text for part in self.content or () if (text := part.get("text") or part.get("refusal")))

    @property
    def unreadable(self) -> str | None:
        """The type of the first part that is not text, such as an image."""
        parts = self.content if isinstance(self.content, list) else ()
        return next((part["type"] for part in parts if part["type"] not in _READABLE), None)


class Message(_Content):
    """A message of a chat completion. An assistant that called a tool has no content."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]


class Item(_Content):
    """An item of a response's input: a message, or a call of a tool, its output or a reasoning, which are skipped."""

    type: str = "message"
    role: str | None = None


class Format(BaseModel):
    """A format of the output."""

    type: str


class TextOptions(BaseModel):
    """Options of the text that the Responses API returns."""

    format: Format | None = None


class StreamOptions(BaseModel):
    """OpenAI's options of a stream; others than these are ignored."""

    include_usage: bool | None = None


class _OpenAIRequest(ScopeFilter):
    model_config = ConfigDict(extra="ignore")

    model: str = Field(
        max_length=200,
        description="rag-shards, rag-shards/REGION or rag-shards/REGION/DEPARTMENT; with the suffix :sources, the text "
        "ends with a list of the cited sources",
        json_schema_extra={"pattern": "^rag-shards"},
    )
    stream: bool | None = Field(default=False, strict=True, description="stream the answer as server-sent events")
    tool_choice: Any = Field(None, description="none or auto; no tool is ever called")


def _examples(field: str, value: Any) -> ConfigDict:
    body = {"model": "rag-shards", field: value}
    return ConfigDict(json_schema_extra={"examples": [body, {**body, "stream": True}]})


class ChatRequest(_OpenAIRequest):
    """A request for a chat completion."""

    model_config = _examples("messages", [{"role": "user", "content": _QUESTION}])

    messages: Annotated[list[Message], FIRST_FAULT] = Field(
        min_length=1,
        max_length=MOST_MESSAGES,
        description="conversation; the last message is the question, and the oldest turns of a long one are dropped",
    )
    stream_options: StreamOptions | None = Field(None, description="include_usage: report the tokens at the end")
    n: int | None = Field(1, description="number of completions; only 1")
    response_format: Format | None = Field(None, description="only the type text")
    logprobs: bool | None = Field(None, description="only false")
    modalities: Annotated[list[str], FIRST_FAULT] | None = Field(None, description="only text")


class ResponsesRequest(_OpenAIRequest):
    """A request of the Responses API. Nothing is stored, whatever `store` says."""

    model_config = _examples("input", _QUESTION)

    input: str | Annotated[list[Item], Field(min_length=1, max_length=MOST_MESSAGES), FIRST_FAULT] = Field(
        description="the question, or a list of items; its last message is the question"
    )
    text: TextOptions | None = Field(None, description="only the format text")
    background: bool | None = Field(None, description="only false")
    previous_response_id: str | None = Field(None, description="only null: send the conversation in input")
    conversation: Any = Field(None, description="only null: send the conversation in input")

    @property
    def messages(self) -> Sequence[Item]:
        """The messages of the input."""
        if isinstance(self.input, str):
            return [Item(role="user", content=self.input)]
        return [item for item in self.input if item.type == "message"]
