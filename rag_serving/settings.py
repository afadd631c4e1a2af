"""Settings of the serving side, read from `RAG_*` environment variables when asked for, never at import."""

import os
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, StringConstraints, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from rag_serving.errors import SettingsError

DEFAULT_LAKE = "./lake"
SERVICE_DEADLINE = 150.0
SERVICE_TRIES = 4

NonEmpty = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Environment(BaseSettings):
    """Base of all settings: every field is the variable of the prefix + its name in capitals."""

    model_config = SettingsConfigDict(env_prefix="RAG_", env_ignore_empty=True, frozen=True, extra="ignore")

    @classmethod
    def from_env(cls, **given: Any) -> Self:
        """Read the environment; `given` fields replace it.

        Raises `SettingsError` that names each wrong variable, never its value, and for a field that does not exist.
        """
        unknown = sorted(given.keys() - cls.model_fields.keys())
        if unknown:
            raise SettingsError(f"there is no setting named {', '.join(unknown)}")
        try:
            return cls(**given)  # pyright: ignore[reportCallIssue]  # every field comes from the environment or its default
        except ValidationError as error:
            prefix = cls.model_config.get("env_prefix", "")
            problems = "; ".join(
                f"{prefix}{'_'.join(str(part) for part in problem['loc']).upper()}: {problem['msg']}"
                for problem in error.errors(include_input=False, include_url=False)
            )
            raise SettingsError(f"check the environment: {problems}") from None


class EnvironmentSettings(Environment):
    """Base of both packages' settings."""

    lake_uri: NonEmpty = Field(DEFAULT_LAKE, description="folder or s3://bucket/prefix that holds the tables")


class ServingSettings(EnvironmentSettings):
    """What the client needs to answer."""

    redis_url: SecretStr | None = Field(None, description="redis:// or rediss:// URL of the cache; in memory without")
    llm_model: NonEmpty | None = Field(None, description="litellm model name; without it answers are extracts")
    llm_fallbacks: NonEmpty | None = Field(
        None, description="litellm names of the models that are asked when the first fails, with commas between"
    )
    llm_timeout: float = Field(30.0, gt=0, le=600, description="seconds for one model, its retries included")
    llm_retries: int = Field(2, ge=0, le=10, description="further tries after a failed call of the model")
    llm_max_tokens: int = Field(600, ge=16, le=32_000, description="longest generated answer, in tokens")
    llm_context_tokens: int = Field(3_000, ge=200, le=1_000_000, description="tokens of passages in a prompt at most")
    llm_concurrency: int = Field(16, ge=1, le=1_024, description="calls of the model in flight at once")
    queue_limit: int = Field(
        256, ge=0, description="questions that may wait for a search or a call; others are refused"
    )
    ask_deadline: float = Field(120.0, gt=0, le=3_600, description="seconds that one question may take")
    min_evidence: float | None = Field(
        None, ge=-1, le=1, description="cosine below which passages answer nothing; by default that of the known model"
    )
    catalog_refresh: float = Field(2.0, ge=0, le=3600, description="seconds that a catalog snapshot is used for")
    search_concurrency: int | None = Field(
        None, ge=1, le=256, description="table searches in flight at once; one a core, two at least, without"
    )
    wide_shards: int = Field(
        4, ge=1, description="shards from which on beyond them a question is asked of the company index"
    )
    search_cache_bytes: int = Field(2**31, ge=2**24, description="bytes of indexes kept in memory at most")
    rerank_model: NonEmpty | None = Field(None, description="litellm name of a reranker; hits keep their order without")
    cache_ttl: int = Field(86_400, ge=1, description="seconds from the making of an answer to its end")
    cache_refusal_ttl: int = Field(300, ge=1, description="the same for an answer that says that nothing was found")
    cache_mode: Literal["on", "shadow", "off"] = Field(
        "on", description="shadow answers anew and logs what would have been served"
    )
    cache_similarity: float = Field(
        0.98, gt=0, le=1.0, description="cosine from which a paraphrase is served without comparing passages"
    )
    cache_max_error: float = Field(
        0.01, gt=0, le=0.5, description="share of wrong answers that the guards may let through, among those served"
    )
    cache_calibration: NonEmpty | None = Field(
        None, description="file that rag-serving calibrate wrote; the one shipped otherwise"
    )
    cache_entries: int = Field(100_000, ge=1, description="entries in Redis at most; the least used go first")
    cache_timeout: float = Field(0.25, gt=0, le=30, description="seconds that the cache may take before it is bypassed")
    cache_memory_entries: int = Field(10_000, ge=1, description="bound of the in-memory cache, without Redis")
    cache_prefix: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,32}$")] = Field(
        "rag", description="first part of every Redis key, so that several deployments share a server"
    )

    @property
    def searches_at_once(self) -> int:
        """More than there are cores make no search quicker, and everything beside them slower."""
        return self.search_concurrency or max(2, os.cpu_count() or 1)


class ServiceSettings(Environment):
    """Which service a client asks, where it asks one."""

    model_config = SettingsConfigDict(env_prefix="RAG_SERVICE_")

    url: NonEmpty | None = Field(None, description="a service to ask; without it the client reads the lake itself")
    key: SecretStr | None = Field(None, description="key for it, rag_…")
    deadline: float = Field(
        SERVICE_DEADLINE, gt=0, le=3_600, description="seconds for one question to it, its tries included"
    )
    tries: int = Field(SERVICE_TRIES, ge=1, le=20, description="requests for one question at most")
