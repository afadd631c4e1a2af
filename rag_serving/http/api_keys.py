"""API keys: the tenant, visible shards and rate limit of each caller. Only hashes of keys are stored.

A key is ``rag_``, an id of 8 hex digits, ``_`` and a secret of 43 characters. The secret has 256 random bits, so one
round of SHA-256 is a sufficient hash: guessing is infeasible.
"""

import fcntl
import hashlib
import hmac
import logging
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from rag_serving.errors import InvalidArgument, SettingsError, first_problem
from rag_serving.lake.shards import pattern_halves

_KEY = re.compile(r"rag_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
_NOBODY = "0" * 64
_CHECK_SECONDS = 1.0
"""Seconds between two checks whether the key file changed: each is a system call on the event loop."""
_PRIVATE = 0o600

_log = logging.getLogger(__name__)

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

    @field_validator("keys")
    @classmethod
    def _distinct(cls, keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        if len({key.id for key in keys}) < len(keys):
            raise ValueError("must not contain an id twice")
        return keys


class ApiKeys:
    """Looks up keys in a file. A new key is valid at once, other changes within a second. Thread-safe.

    If the file breaks or disappears later, the keys that were read last stay valid: callers notice nothing, and
    operators learn it from one line of log and from `problem`.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._checked = -math.inf
        self._stamp: tuple[int, ...] | None = None
        """Identifies the content that was parsed last, valid or not."""
        self._keys: dict[str, ApiKey] = {}
        self.problem: str | None = None
        """Why the file cannot be used at present; contains its path."""

    def check(self) -> None:
        """Read the file now; raises `SettingsError` if it is missing or malformed."""
        self._read()
        if self.problem is not None:
            raise SettingsError(self.problem)

    def refresh(self) -> None:
        """Read the file if it changed and was not looked at for a second."""
        if self._clock() - self._checked >= _CHECK_SECONDS:
            self._read_and_report()

    def find(self, presented: str) -> ApiKey | None:
        """Return the presented key, or None if it is unknown or revoked. Compares in constant time."""
        match = _KEY.fullmatch(presented)
        is_new = match is not None and match[1] not in self._keys
        if is_new:
            self._read_and_report()
        self.refresh()
        key = self._keys.get(match[1]) if match else None
        digest = hashlib.sha256((match[2] if match else presented).encode("utf-8", "replace")).hexdigest()
        same = hmac.compare_digest(digest, key.sha256 if key is not None else _NOBODY)
        return key if same and key is not None and key.revoked_at is None else None

    def _read_and_report(self) -> None:
        before = self.problem
        self._read()
        if self.problem is not None and self.problem != before:
            _log.error("%s; until then, the keys that were read last stay valid", self.problem)
        elif self.problem is None and before is not None:
            _log.warning("the key file %s is valid again", self._path)

    def _read(self) -> None:
        """Read the file if it changed, into `_keys` or `problem`."""
        self._checked = self._clock()
        try:
            state = self._path.stat()
            stamp = (state.st_mtime_ns, state.st_ino, state.st_size)
            if stamp == self._stamp:
                return
            data = self._path.read_bytes()
        except OSError as error:
            self._stamp = None  # the file may become readable again without a change of its content
            self.problem = _unreadable(self._path, error)
            return
        self._stamp = stamp
        try:
            self._keys = {key.id: key for key in _parsed(self._path, data)}
            self.problem = None
        except SettingsError as error:
            self.problem = str(error)


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Return all stored keys, including revoked ones; none if there is no file.

    Raises `SettingsError` if the file cannot be read or is malformed.
    """
    try:
        return _parsed(path, path.read_bytes())
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise SettingsError(_unreadable(path, error)) from None


def _parsed(path: Path, data: bytes) -> tuple[ApiKey, ...]:
    try:
        return ApiKeyFile.model_validate_json(data).keys
    except ValidationError as error:
        raise SettingsError(
            f"the key file {path} is malformed ({first_problem(error)}); repair it or restore a copy"
        ) from None


def _unreadable(path: Path, error: OSError) -> str:
    remedy = (
        "restore a copy, or create one with `rag-serving keys create`, which has none of the former keys"
        if isinstance(error, FileNotFoundError)
        else "set RAG_HTTP_KEYS to a file that this user can read"
    )
    return f"cannot read the key file {path} ({error.strerror}); {remedy}"


def new_key(
    name: str,
    *,
    tenant: str = "default",
    shards: Iterable[str] = ("*/*",),
    requests_per_minute: int = 600,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> tuple[ApiKey, str]:
    """Return a new key as a key file stores it, and its text, which cannot be recovered. Raises `InvalidArgument`."""
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
    return key, f"rag_{key_id}_{secret}"


def create_key(path: Path, name: str, **options: Any) -> tuple[ApiKey, str]:
    """Create and store a key; the options, the result and the errors are those of `new_key`.

    Raises `SettingsError` if the file cannot be read or written.
    """
    key, text = new_key(name, **options)
    with _changing(path) as keys:
        keys.append(key)
    return key, text


def revoke_key(path: Path, key_id: str, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> ApiKey:
    """Revoke a key; running services notice within a second. Raises `InvalidArgument` if the id is unknown.

    Raises `SettingsError` if the file cannot be read or written.
    """
    with _changing(path) as keys:
        for place, key in enumerate(keys):
            if key.id == key_id:
                keys[place] = key.model_copy(update={"revoked_at": key.revoked_at or now()})
                return keys[place]
        raise InvalidArgument(f"no key has the id {key_id[:40]!r}; `rag-serving keys list` shows the ids")


@contextmanager
def _changing(path: Path) -> Generator[list[ApiKey]]:
    """Lock the file, yield its keys for modification, and write them back atomically; raises `SettingsError`."""
    try:
        path = path.resolve()  # a symbolic link stays one
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            keys = list(read_keys(path))
            yield keys
            _replace(path, keys)
    except OSError as error:
        raise SettingsError(
            f"cannot change the key file {path} ({error.strerror}); run this as a user who can write to {path.parent}. "
            "If the folder is read-only, such as a mounted Secret, make the key with `rag-serving keys create --print`"
        ) from None


@contextmanager
def _locked(path: Path) -> Generator[None]:
    descriptor = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, _PRIVATE)
    with os.fdopen(descriptor, "r+"):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(OSError):  # so that the owner of the key file can lock it, too
            state = path.stat()
            os.fchown(descriptor, state.st_uid, state.st_gid)
        yield


def _replace(path: Path, keys: Sequence[ApiKey]) -> None:
    """Replace the file atomically by one with the same owner, group and mode."""
    written = path.with_name(f"{path.name}.new")
    descriptor = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _PRIVATE)
    with os.fdopen(descriptor, "w") as file:
        mode = _PRIVATE
        if path.exists():
            before = path.stat()
            mode = stat.S_IMODE(before.st_mode)
            _keep_owner(path, descriptor, before)
        os.fchmod(descriptor, mode)
        file.write(ApiKeyFile(keys=tuple(keys)).model_dump_json(indent=1) + "\n")
        file.flush()
        os.fsync(descriptor)
    written.replace(path)


def _keep_owner(path: Path, descriptor: int, before: os.stat_result) -> None:
    """Give the new file the owner and group of the one that it replaces, or warn that they change."""
    try:
        os.fchown(descriptor, before.st_uid, before.st_gid)
    except OSError:
        with suppress(OSError):
            os.fchown(descriptor, -1, before.st_gid)
        now = os.fstat(descriptor)
        _log.warning(
            "%s belongs to %d:%d now instead of %d:%d, which this user may not set; if the service cannot read it, "
            "run `chown %d:%d %s` as root",
            *(path, now.st_uid, now.st_gid, before.st_uid, before.st_gid, before.st_uid, before.st_gid, path),
        )
