"""What requests of OpenAI's protocol may ask for and this service does not do. It is refused, not silently ignored."""

from collections.abc import Mapping

from rag_serving.errors import UnsupportedParameter
from rag_serving.http.openai.schemas import ChatRequest, Format, ResponsesRequest

_NOTHING_STORED = "nothing is stored here; send the whole conversation in input"


def refuse_unsupported(body: ChatRequest | ResponsesRequest) -> None:
    """Raise `UnsupportedParameter` for the first field that asks for something else than one answer as text."""
    problems = _of_chat(body) if isinstance(body, ChatRequest) else _of_responses(body)
    if body.tool_choice not in (None, "none", "auto"):
        problems["tool_choice"] = "no tool is called here; omit it or send auto or none"
    if problems:
        param, problem = next(iter(problems.items()))
        raise UnsupportedParameter(f"{param}: {problem}", param)


def _of_chat(body: ChatRequest) -> dict[str, str]:
    problems = _of_format("response_format", body.response_format)
    if body.n not in (None, 1):
        problems["n"] = "only one completion is made; omit it or send 1"
    if body.logprobs:
        problems["logprobs"] = "not available; omit it"
    if set(body.modalities or ()) - {"text"}:
        problems["modalities"] = "answers are text; omit it or send ['text']"
    return problems


def _of_responses(body: ResponsesRequest) -> dict[str, str]:
    problems = _of_format("text.format", body.text.format if body.text else None)
    if body.background:
        problems["background"] = "not available; omit it and wait for the answer, or stream it"
    stored: Mapping[str, object] = {
        "previous_response_id": body.previous_response_id,
        "conversation": body.conversation,
    }
    problems |= {param: _NOTHING_STORED for param, value in stored.items() if value is not None}
    return problems


def _of_format(param: str, chosen: Format | None) -> dict[str, str]:
    if chosen is None or chosen.type == "text":
        return {}
    return {param: "answers are text with citations; omit it or send the type text"}
