"""Settings of the service, read from `RAG_HTTP_*` variables."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from rag_serving.settings import Environment, NonEmpty


class HttpSettings(Environment):
    """What the service needs beside what the client needs."""

    model_config = SettingsConfigDict(env_prefix="RAG_HTTP_")

    keys: NonEmpty | None = Field(None, description="file of keys; without it, only --open serves")
    max_body: int = Field(1_000_000, ge=1_000, le=100_000_000, description="bytes of a request at most")
    concurrency: int = Field(4_000, ge=1, description="requests at once in a process; further ones get 503")
    failed_keys_per_minute: int = Field(20, ge=1, description="wrong keys from one address; further ones get 429")
    keep_alive: int = Field(
        75, ge=1, le=3_600, description="seconds that an idle connection stays open; more than a load balancer's"
    )
    drain_seconds: int = Field(60, ge=1, le=3_600, description="for requests under way when the service is ended")
