"""A language model that streams the same answer over half a second, by the OpenAI protocol."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

SECONDS = 0.5
_PIECES = ("The", " source", " says", " so", " in", " its", " own", " words", " [1]", ".")


def _chunk(delta: dict[str, Any], **more: Any) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": more.pop("finish", None)}]
    content = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "stand-in", "choices": choices}
    return f"data: {json.dumps({**content, **more})}\n\n".encode()


async def _answer(request: Request) -> StreamingResponse:
    await request.body()

    async def said() -> AsyncIterator[bytes]:
        for piece in _PIECES:
            await asyncio.sleep(SECONDS / len(_PIECES))
            yield _chunk({"content": piece})
        yield _chunk({}, finish="stop")
        usage = {"prompt_tokens": 700, "completion_tokens": len(_PIECES), "total_tokens": 700 + len(_PIECES)}
        yield _chunk({}, choices=[], usage=usage)
        yield b"data: [DONE]\n\n"

    return StreamingResponse(said(), media_type="text/event-stream")


def app() -> Starlette:
    """Return the application for uvicorn."""
    return Starlette(routes=[Route("/v1/chat/completions", _answer, methods=["POST"])])
