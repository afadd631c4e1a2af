"""The key file: changes while the service runs, and how the commands write it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from rag_serving.cli.main import main
from rag_serving.errors import SettingsError
from rag_serving.http.api_keys import ApiKeyFile, ApiKeys, create_key, read_keys, revoke_key

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files to other users")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def clock() -> Clock:
    return Clock()


def damage(path: Path) -> None:
    path.write_text('{"keys": [')


def make_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


# While the service runs.


@pytest.mark.parametrize("breaking", [damage, Path.unlink, make_a_folder])
def test_known_keys_stay_valid_while_the_file_is_broken_and_one_line_reports_it(
    path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, breaking: Callable[[Path], None]
) -> None:
    key, text = create_key(path, "one")
    keys = ApiKeys(path, clock=clock)
    keys.check()
    whole = path.read_bytes()
    breaking(path)
    for _ in range(5):
        clock.now += 2
        assert keys.find(text) == key
    assert keys.problem is not None
    assert str(path) in keys.problem
    (line,) = caplog.records
    assert (line.levelno, line.name) == (logging.ERROR, "rag_serving.http.api_keys")
    assert keys.problem in line.getMessage()
    if path.is_dir():
        path.rmdir()
    path.write_bytes(whole)
    for _ in range(5):
        clock.now += 2
        assert keys.find(text) == key
    assert keys.problem is None
    assert "is valid again" in caplog.records[1].getMessage()
    assert len(caplog.records) == 2


def test_a_key_that_is_revoked_in_the_repaired_file_is_refused(path: Path, clock: Clock) -> None:
    key, text = create_key(path, "one")
    keys = ApiKeys(path, clock=clock)
    keys.check()
    revoke_key(path, key.id)
    revoked = path.read_bytes()
    damage(path)
    clock.now += 2
    assert keys.find(text) == key
    path.write_bytes(revoked)
    clock.now += 2
    assert keys.find(text) is None


def test_a_broken_file_is_parsed_once(path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    _, text = create_key(path, "one")
    keys = ApiKeys(path, clock=clock)
    keys.check()
    damage(path)
    parsed: list[bytes] = []
    original = ApiKeyFile.model_validate_json
    monkeypatch.setattr(ApiKeyFile, "model_validate_json", lambda data: (parsed.append(data), original(data))[1])
    for _ in range(5):
        clock.now += 2
        keys.find(text)
    assert len(parsed) == 1


def test_a_file_that_cannot_be_read_is_tried_again_without_a_change(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> bytes:
        raise OSError(24, "Too many open files")

    key, text = create_key(path, "one")
    keys = ApiKeys(path, clock=clock)
    keys.check()
    os.utime(path, ns=(1, 1))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        clock.now += 2
        assert keys.find(text) == key
        assert "Too many open files" in (keys.problem or "")
    clock.now += 2
    assert keys.find(text) == key
    assert keys.problem is None


def test_a_new_key_is_valid_at_once_and_a_revoked_one_for_another_second(path: Path, clock: Clock) -> None:
    first, text = create_key(path, "one")
    keys = ApiKeys(path, clock=clock)
    keys.check()
    second, new = create_key(path, "two")
    assert keys.find(new) == second
    revoke_key(path, first.id)
    clock.now += 0.9
    assert keys.find(text) == first
    clock.now += 0.2
    assert keys.find(text) is None


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "create one with `rag-serving keys create`"),
        (b"", "malformed"),
        (b"\xff\xfe", "malformed"),
        (b"[" * 100_000, "malformed"),
        (b'{"format": 2}', "malformed"),
    ],
)
def test_the_service_does_not_start_with_a_broken_file(path: Path, content: bytes | None, problem: str) -> None:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=problem) as caught:
        ApiKeys(path).check()
    assert str(path) in str(caught.value)


def test_an_id_that_occurs_twice_makes_the_file_malformed(path: Path) -> None:
    create_key(path, "one")
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "keys": stored["keys"] * 2}))
    with pytest.raises(SettingsError, match="must not contain an id twice"):
        ApiKeys(path).check()


# Writing it.


def test_a_new_file_and_its_lock_are_private(path: Path) -> None:
    create_key(path, "one")
    assert {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {
        "keys.json": 0o600,
        "keys.json.lock": 0o600,
    }


@pytest.mark.parametrize("mode", [0o640, 0o400])
def test_the_mode_of_an_existing_file_is_kept(path: Path, mode: int) -> None:
    key, _ = create_key(path, "one")
    path.chmod(mode)
    create_key(path, "two")
    assert path.stat().st_mode & 0o777 == mode
    revoke_key(path, key.id)
    assert path.stat().st_mode & 0o777 == mode
    assert len(read_keys(path)) == 2


def test_a_file_left_by_a_killed_command_does_not_widen_the_mode(path: Path) -> None:
    left = path.with_name("keys.json.new")
    left.touch()
    left.chmod(0o666)
    create_key(path, "one")
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_symbolic_link_stays_one(path: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    path.symlink_to(tmp_path / "real" / "keys.json")
    create_key(path, "one")
    assert path.is_symlink()
    assert len(read_keys(tmp_path / "real" / "keys.json")) == 1


@as_root
def test_the_owner_and_the_group_of_an_existing_file_are_kept(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    create_key(path, "one")
    os.chown(path, 12_345, 23_456)
    create_key(path, "two")
    for file in (path, path.with_name("keys.json.lock")):
        assert (file.stat().st_uid, file.stat().st_gid) == (12_345, 23_456)
    assert caplog.records == []


@as_root
def test_a_change_of_the_owner_is_reported_in_one_line(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    create_key(path, "one")
    os.chown(path, 12_345, 23_456)
    monkeypatch.setattr(os, "fchown", refuse)
    create_key(path, "two")
    (line,) = caplog.messages
    assert f"belongs to {os.getuid()}:{os.getgid()} now instead of 12345:23456" in line
    assert f"chown 12345:23456 {path}" in line
    assert len(read_keys(path)) == 2


@pytest.mark.parametrize("folder", ["a file", "/proc"])
def test_a_folder_that_cannot_be_written_to_is_a_named_error_with_a_remedy(tmp_path: Path, folder: str) -> None:
    (tmp_path / "a file").touch()
    path = tmp_path / folder / "keys.json"
    with pytest.raises(SettingsError, match=r"cannot change the key file .*--print") as caught:
        create_key(path, "one")
    assert str(path) in str(caught.value)


# Without a file.


def printed(*arguments: str) -> dict[str, object]:
    result = CliRunner().invoke(main, ["keys", "create", *arguments, "--print"], env={"RAG_HTTP_KEYS": None})
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_key_file_assembled_from_printed_entries_is_accepted(path: Path) -> None:
    made = [printed("intranet", "--shards", "oslo/*", "--tenant", "oslo", "--per-minute", "60"), printed("日本")]
    path.write_text(json.dumps({"keys": [one["entry"] for one in made]}))
    keys = ApiKeys(path)
    keys.check()
    first, second = (keys.find(str(one["key"])) for one in made)
    assert first is not None
    assert (first.name, first.shards, first.tenant, first.requests_per_minute) == ("intranet", ("oslo/*",), "oslo", 60)
    assert second is not None
    assert second.name == "日本"


def test_a_printed_entry_does_not_contain_the_secret() -> None:
    made = printed("intranet")
    assert str(made["key"]).split("_", 2)[2] not in json.dumps(made["entry"])


def test_a_key_is_printed_without_touching_the_configured_file(path: Path) -> None:
    result = CliRunner().invoke(main, ["keys", "create", "one", "--print"], env={"RAG_HTTP_KEYS": str(path)})
    assert result.exit_code == 0, result.output
    assert list(path.parent.iterdir()) == []


@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
def test_jq_adds_a_printed_entry_to_a_key_file_as_the_documentation_shows(path: Path) -> None:
    create_key(path, "one")
    made = json.dumps(printed("two"))
    added = subprocess.run(
        ["jq", "--argjson", "made", made, ".keys += [$made.entry]", str(path)], capture_output=True, check=True
    )
    path.write_bytes(added.stdout)
    assert [key.name for key in read_keys(path)] == ["one", "two"]
