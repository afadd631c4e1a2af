"""Settings of the serving side, read from `RAG_*` environment variables on request, never at import.

Also what a setting defaults to if it depends on the machine.
"""

import contextlib
import difflib
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, StringConstraints, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from rag_serving.errors import SettingsError, in_plain_words

DEFAULT_LAKE = "./lake"
SERVICE_DEADLINE = 150.0
SERVICE_TRIES = 4

LINK_PLACEHOLDERS = ("region", "department", "path", "name", "shard")
"""What RAG_SOURCE_LINK may contain."""

SIMILAR = 0.89
"""An unknown variable at least this similar to a setting is reported; settings of different classes differ more."""

_log = logging.getLogger(__name__)
_reported: set[str] = set()

NonEmpty = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Environment(BaseSettings):
    """Base of all settings: the field `lake_uri` is read from `RAG_LAKE_URI`."""

    model_config = SettingsConfigDict(env_prefix="RAG_", env_ignore_empty=True, frozen=True, extra="ignore")

    @classmethod
    def from_env(cls, **given: Any) -> Self:
        """Read the environment; `given` values take precedence.

        Raises `SettingsError`, which names every invalid variable but never its value, also for an unknown field. Logs
        a warning for a variable that looks like a misspelled setting.
        """
        _report_misspelled()
        unknown = sorted(given.keys() - cls.model_fields.keys())
        if unknown:
            raise SettingsError(f"unknown setting: {', '.join(unknown)}")
        try:
            return cls(**given)  # pyright: ignore[reportCallIssue]  # every field comes from the environment or its default
        except ValidationError as error:
            problems = "; ".join(
                f"{cls.variable(str(problem['loc'][0]))}: {in_plain_words(problem)} "
                f"({cls.model_fields[str(problem['loc'][0])].description})"
                for problem in error.errors(include_input=False, include_url=False)
            )
            raise SettingsError(f"invalid environment variable: {problems}") from None

    @classmethod
    def variable(cls, field: str) -> str:
        """Return the name of the field's environment variable."""
        return f"{cls.model_config.get('env_prefix', '')}{field}".upper()

    @classmethod
    def subclasses(cls) -> "Iterator[type[Environment]]":
        """Yield every class of settings that is loaded."""
        for subclass in cls.__subclasses__():
            yield subclass
            yield from subclass.subclasses()


def _report_misspelled() -> None:
    known = {settings.variable(field) for settings in Environment.subclasses() for field in settings.model_fields}
    for name in sorted(os.environ.keys() - known - _reported):
        if name.startswith("RAG_") and (similar := difflib.get_close_matches(name, known, n=1, cutoff=SIMILAR)):
            _reported.add(name)
            _log.warning("%s is not a setting and has no effect; did you mean %s?", name, similar[0])


class EnvironmentSettings(Environment):
    """Settings that both packages share."""

    lake_uri: NonEmpty = Field(DEFAULT_LAKE, description="folder or s3://bucket/prefix that holds the tables")
    source_uri: NonEmpty | None = Field(
        None, description="folder or s3://bucket/prefix where documents arrive; a service opens their originals there"
    )
    cores: int | None = Field(
        None, ge=1, le=1_024, description="cores to use; unset: those that the machine or its container grants"
    )

    @property
    def usable_cores(self) -> int:
        """Cores to use."""
        return self.cores or available_cores()


class ServingSettings(EnvironmentSettings):
    """Settings of a client that answers from a lake."""

    redis_url: SecretStr | None = Field(None, description="redis:// or rediss:// URL; unset: the cache is in memory")
    llm_model: NonEmpty | None = Field(None, description="litellm model name; unset: answers are extracts")
    llm_fallbacks: NonEmpty | None = Field(None, description="litellm models to try next, in order, comma-separated")
    llm_timeout: float = Field(
        30.0, gt=0, le=600, description="seconds of silence, at the start or between two tokens, that fail a model"
    )
    llm_retries: int = Field(
        2, ge=0, le=10, description="retries of a model call that returned a transient error; silence is not retried"
    )
    llm_max_tokens: int = Field(600, ge=16, le=32_000, description="maximum length of a generated answer in tokens")
    llm_context_tokens: int = Field(3_000, ge=200, le=1_000_000, description="maximum tokens of passages in a prompt")
    llm_keep_links: bool = Field(
        False, description="keep links and images in the text of a model that do not point to one of its sources"
    )
    llm_concurrency: int = Field(16, ge=1, le=1_024, description="maximum concurrent model calls")
    queue_limit: int = Field(
        256,
        ge=0,
        description="maximum number of queued searches, and of queued model calls; further ones are refused",
    )
    ask_deadline: float = Field(
        120.0,
        gt=0,
        le=3_600,
        description="deadline of one question in seconds; what a model has written by then is kept",
    )
    finish_abandoned: bool = Field(
        False, description="finish and cache answers whose callers have left, instead of cancelling the model call"
    )
    hosted_embedders: NonEmpty | None = Field(
        None,
        description="hosted embedding models that questions may be sent to, comma-separated: the names after litellm: "
        "in RAG_EMBEDDING_MODEL; unset: none",
    )
    min_evidence: float | None = Field(
        None, ge=-1, le=1, description="cosine below which passages are irrelevant; unset: measured for the known model"
    )
    catalog_refresh: float = Field(2.0, ge=0, le=3600, description="seconds to reuse a catalog snapshot")
    search_concurrency: int | None = Field(
        None, ge=1, le=256, description="maximum concurrent table searches; unset: one per core, at least two"
    )
    wide_shards: int = Field(4, ge=1, description="questions over more shards than this use the company index")
    search_cache_bytes: int = Field(2**31, ge=2**24, description="maximum bytes of indexes kept in memory")
    source_link: NonEmpty | None = Field(
        None,
        description="URL that opens a document, with {region} {department} {path} {name} {shard}, such as "
        "https://intranet.example/docs/{shard}/{path}; unset: the page of the service",
    )
    rerank_model: NonEmpty | None = Field(None, description="litellm reranker; unset: hits keep their fused order")
    cache_ttl: int = Field(86_400, ge=1, description="lifetime of a cached answer in seconds; hits do not extend it")
    cache_refusal_ttl: int = Field(300, ge=1, description="lifetime of a cached “not found” answer in seconds")
    cache_mode: Literal["on", "shadow", "off"] = Field(
        "on", description="shadow: never serve from the cache, but log what would have been served"
    )
    cache_similarity: float = Field(
        0.98, gt=0, le=1.0, description="at or above this cosine a paraphrase is served without comparing passages"
    )
    cache_max_error: float = Field(0.01, gt=0, le=0.5, description="tolerated share of wrong answers in semantic hits")
    cache_calibration: NonEmpty | None = Field(None, description="calibration file; unset: the packaged one")
    cache_entries: int = Field(100_000, ge=1, description="maximum entries in Redis; the least used are evicted")
    cache_timeout: float = Field(0.25, gt=0, le=30, description="seconds to wait for Redis before bypassing it")
    cache_copy_seconds: float = Field(
        2.0, ge=0, le=60, description="seconds for which a process repeats what it found in Redis; 0: it always asks"
    )
    cache_memory_entries: int = Field(10_000, ge=1, description="maximum entries of the in-memory cache")
    cache_prefix: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,32}$")] = Field(
        "rag", description="prefix of every Redis key, so that several deployments can share a server"
    )

    @field_validator("source_link")
    @classmethod
    def _link_template(cls, value: str | None) -> str | None:
        if value is not None:
            _check_link_template(value)
        return value

    @property
    def searches_at_once(self) -> int:
        """Maximum concurrent searches; more than one per core speeds up no search and slows down everything else."""
        return self.search_concurrency or max(2, self.usable_cores)

    @property
    def allowed_embedders(self) -> frozenset[str]:
        """Names of the hosted embedding models that questions may be sent to."""
        return frozenset(name.strip() for name in (self.hosted_embedders or "").split(",") if name.strip())


def _check_link_template(template: str) -> None:
    try:
        fields = [field for _, *field in Formatter().parse(template) if field[0] is not None]
        host = urlsplit(template).netloc
    except ValueError:
        raise ValueError("expected a URL in which braces enclose a placeholder") from None
    if not template.startswith(("https://", "http://")) or not host or "{" in host:
        raise ValueError("expected a URL that begins with https:// and a host, or http://")
    if any(field not in ([name, "", None] for name in LINK_PLACEHOLDERS) for field in fields):
        raise ValueError(f"expected no other placeholders than {{{'}, {'.join(LINK_PLACEHOLDERS)}}}")


class ServiceSettings(Environment):
    """Settings of a client that queries a service."""

    model_config = SettingsConfigDict(env_prefix="RAG_SERVICE_")

    url: NonEmpty | None = Field(None, description="URL of the service; unset: the client reads the lake itself")
    key: SecretStr | None = Field(None, description="API key, rag_…")
    deadline: float = Field(SERVICE_DEADLINE, gt=0, le=3_600, description="seconds per question, including retries")
    tries: int = Field(SERVICE_TRIES, ge=1, le=20, description="maximum requests per question")


def available_cores(root: Path = Path("/")) -> int:
    """Return the cores that this process may use, at least one; `root` is the folder of the kernel's files.

    A fraction of a core counts as one. Reads quotas of control groups, version 2 and 1.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([affinity, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the quota of each control group that this process is in, in cores."""
    mounted = root / "sys/fs/cgroup"
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                group = mounted / path.lstrip("/")
                for folder in (group, *group.parents):
                    if folder == mounted.parent:
                        break
                    yield from _quota(folder / "cpu.max")
            elif "cpu" in controllers.split(","):
                # A container sees its own group at the top, whatever its path says.
                for folder in (mounted / "cpu", mounted / "cpu" / path.lstrip("/")):
                    yield from _quota(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")


def _quota(*files: Path) -> Iterator[float]:
    """Yield the quota from files that hold a time and its period in microseconds; nothing without a limit."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        time, period = " ".join(file.read_text() for file in files).split()
        if time not in ("max", "-1"):
            yield int(time) / int(period)
