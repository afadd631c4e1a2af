"""Settings of the service, read from `RAG_HTTP_*` variables."""

import ipaddress
import re
from typing import Annotated

from pydantic import Field, StringConstraints, field_validator
from pydantic_settings import SettingsConfigDict

from rag_serving.settings import Environment, NonEmpty

_PUBLIC_URL = re.compile(r"https?://[^\s/?#]+/?")


class HttpSettings(Environment):
    """Settings of the service, in addition to `ServingSettings`."""

    model_config = SettingsConfigDict(env_prefix="RAG_HTTP_")

    keys: NonEmpty | None = Field(None, description="file of API keys; unset: the service starts only with --open")
    max_body: int = Field(1_000_000, ge=1_000, le=100_000_000, description="maximum bytes of a request body; else 413")
    connections: int = Field(10_000, ge=1, description="maximum connections per process; idle ones are closed first")
    head_bytes: int = Field(32_768, ge=1_024, le=1_000_000, description="maximum bytes of a request's head; else 431")
    head_seconds: float = Field(10.0, gt=0, le=3_600, description="seconds to receive a request's head; else 408")
    concurrency: int = Field(4_000, ge=1, description="maximum concurrent requests per process; more get 503")
    body_seconds: float = Field(30.0, gt=0, le=3_600, description="seconds to receive a request body; else 408")
    send_seconds: float = Field(60.0, gt=0, le=3_600, description="seconds before a stalled client is disconnected")
    failed_keys_per_minute: int = Field(20, ge=1, description="wrong keys per minute and address; more get 429")
    keep_alive: int = Field(75, ge=1, le=3_600, description="seconds to keep idle connections; more than the proxy's")
    notice_seconds: float = Field(
        5.0, ge=0, le=3_600, description="seconds between failing readiness and refusing connections, after SIGTERM"
    )
    heartbeat_seconds: float = Field(
        15.0, gt=0, le=3_600, description="seconds of silence before a stream gets a comment"
    )
    protect_metrics: bool = Field(False, description="require an API key for /metrics, /docs and /openapi.json")
    drain_seconds: int = Field(60, ge=1, le=3_600, description="seconds to finish requests on shutdown")
    page_name: NonEmpty = Field("Ask the documents", max_length=80, description="name of the web page")
    page_accent: Annotated[str, StringConstraints(pattern=r"^#[0-9a-fA-F]{6}$")] | None = Field(
        None, description="accent colour of the web page, such as #0a5cad"
    )
    page_examples: NonEmpty | None = Field(
        None, max_length=2_000, description="questions that the empty web page offers, separated by |"
    )
    llm_process: bool = Field(True, description="call the language model in a separate process per worker")
    sources_footer: bool = Field(
        False, description="end every text for OpenAI clients with its sources; off: only with the suffix :sources"
    )
    trusted_proxies: NonEmpty | None = Field(
        None, description="comma-separated addresses or networks whose X-Forwarded-For is trusted; unset: none"
    )

    public_url: NonEmpty | None = Field(
        None, description="URL at which callers reach the service, for links; unset: that of the request's Host header"
    )

    @field_validator("public_url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is not None and _PUBLIC_URL.fullmatch(value) is None:
            raise ValueError("expected a URL without a path, such as https://rag.example")
        return value

    @property
    def examples(self) -> list[str]:
        """The questions that the empty web page offers."""
        return [question.strip() for question in (self.page_examples or "").split("|") if question.strip()]

    @field_validator("trusted_proxies")
    @classmethod
    def _addresses(cls, value: str | None) -> str | None:
        for one in value.split(",") if value else ():
            try:
                ipaddress.ip_network(one.strip())
            except ValueError:
                raise ValueError("expected addresses or networks, such as 10.0.0.7,172.16.0.0/12") from None
        return value
