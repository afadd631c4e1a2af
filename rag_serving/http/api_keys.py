"""API keys: the tenant, visible shards and rate limit of each caller. Only hashes of keys are stored.

A key is ``rag_``, an id of 8 hex digits, ``_`` and a secret of 43 characters. The secret has 256 random bits, so one
round of SHA-256 is a sufficient hash: guessing is infeasible.
"""

import fcntl
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from rag_serving.errors import InvalidArgument, SettingsError, first_problem
from rag_serving.lake.shards import pattern_halves

_KEY = re.compile(r"rag_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
_NOBODY = "0" * 64

Tenant = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,200}$")]


class ApiKey(BaseModel):
    """A stored key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[0-9a-f]{8}$")
    name: str = Field(min_length=1, max_length=200, description="name for display")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="hash of the secret")
    tenant: Tenant
    shards: tuple[str, ...] = Field(("*/*",), min_length=1, description="patterns of the visible shards")
    requests_per_minute: int = Field(600, ge=1, le=1_000_000)
    created_at: datetime
    revoked_at: datetime | None = None

    @field_validator("shards")
    @classmethod
    def _patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                pattern_halves(pattern)
            except InvalidArgument as error:
                raise ValueError(str(error)) from None
        return patterns


class ApiKeyFile(BaseModel):
    """The key file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(default=1, ge=1, le=1)
    keys: tuple[ApiKey, ...] = ()


class ApiKeys:
    """Looks up keys in a file, which is reloaded when it changes. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: tuple[tuple[int, int], dict[str, ApiKey]] | None = None

    def check(self) -> None:
        """Read the file now; raises `SettingsError` if it is missing or malformed."""
        self._keys()

    def find(self, presented: str) -> ApiKey | None:
        """Return the presented key, or None if it is unknown or revoked. Compares in constant time."""
        match = _KEY.fullmatch(presented)
        key = self._keys().get(match[1]) if match else None
        digest = hashlib.sha256((match[2] if match else presented).encode("utf-8", "replace")).hexdigest()
        same = hmac.compare_digest(digest, key.sha256 if key is not None else _NOBODY)
        return key if same and key is not None and key.revoked_at is None else None

    def _keys(self) -> dict[str, ApiKey]:
        try:
            state = self._path.stat()
            stamp = (state.st_mtime_ns, state.st_ino)
            if self._read is None or self._read[0] != stamp:
                self._read = (stamp, {key.id: key for key in read_keys(self._path)})
        except OSError as error:
            raise SettingsError(
                f"cannot read the key file {self._path} ({error.strerror}); create one with `rag-serving keys create`"
            ) from None
        return self._read[1]


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Return all stored keys, including revoked ones; raises `OSError`, or `SettingsError` for a malformed file."""
    try:
        return ApiKeyFile.model_validate_json(path.read_bytes()).keys
    except ValidationError as error:
        raise SettingsError(f"the key file {path} is malformed ({first_problem(error)})") from None


def create_key(
    path: Path,
    name: str,
    *,
    tenant: str = "default",
    shards: Iterable[str] = ("*/*",),
    requests_per_minute: int = 600,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> tuple[ApiKey, str]:
    """Create and store a key; returns it with its text, which cannot be recovered later. Raises `InvalidArgument`."""
    key_id, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    try:
        key = ApiKey(
            id=key_id,
            name=name,
            sha256=hashlib.sha256(secret.encode()).hexdigest(),
            tenant=tenant,
            shards=tuple(shards),
            requests_per_minute=requests_per_minute,
            created_at=now(),
        )
    except ValidationError as error:
        raise InvalidArgument(first_problem(error)) from None
    with _changing(path) as keys:
        keys.append(key)
    return key, f"rag_{key_id}_{secret}"


def revoke_key(path: Path, key_id: str, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> ApiKey:
    """Revoke a key, effective immediately; raises `InvalidArgument` if the id is unknown."""
    with _changing(path) as keys:
        for place, key in enumerate(keys):
            if key.id == key_id:
                keys[place] = key.model_copy(update={"revoked_at": key.revoked_at or now()})
                return keys[place]
        raise InvalidArgument(f"no key has the id {key_id[:40]!r}; `rag-serving keys list` shows the ids")


@contextmanager
def _changing(path: Path) -> Generator[list[ApiKey]]:
    """Lock the file, yield its keys for modification, and write them back atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = list(read_keys(path)) if path.exists() else []
        yield keys
        written = path.with_name(f"{path.name}.new")
        descriptor = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(ApiKeyFile(keys=tuple(keys)).model_dump_json(indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        written.replace(path)
