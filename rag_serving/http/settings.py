"""Settings of the service, read from `RAG_HTTP_*` variables."""

import ipaddress

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from rag_serving.settings import Environment, NonEmpty


class HttpSettings(Environment):
    """What the service needs beside what the client needs."""

    model_config = SettingsConfigDict(env_prefix="RAG_HTTP_")

    keys: NonEmpty | None = Field(None, description="file of keys; without it, only --open serves")
    max_body: int = Field(1_000_000, ge=1_000, le=100_000_000, description="bytes of a request at most")
    concurrency: int = Field(4_000, ge=1, description="requests at once in a process; further ones get 503")
    body_seconds: float = Field(30.0, gt=0, le=3_600, description="in which a request must have been sent whole")
    send_seconds: float = Field(60.0, gt=0, le=3_600, description="in which a reader must take what is sent to it")
    failed_keys_per_minute: int = Field(20, ge=1, description="wrong keys from one address; further ones get 429")
    keep_alive: int = Field(
        75, ge=1, le=3_600, description="seconds that an idle connection stays open; more than a load balancer's"
    )
    drain_seconds: int = Field(60, ge=1, le=3_600, description="for requests under way when the service is ended")
    llm_process: bool = Field(True, description="call the language model in a process of its own beside each worker")
    trusted_proxies: NonEmpty | None = Field(
        None, description="addresses or networks, with commas, whose X-Forwarded-For says who calls; nobody's without"
    )

    @field_validator("trusted_proxies")
    @classmethod
    def _addresses(cls, value: str | None) -> str | None:
        for one in value.split(",") if value else ():
            try:
                ipaddress.ip_network(one.strip())
            except ValueError:
                raise ValueError("write addresses or networks, as in 10.0.0.7,172.16.0.0/12") from None
        return value
