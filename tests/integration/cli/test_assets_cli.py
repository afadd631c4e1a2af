"""The `rag-assets` command: backfills in this process and by a real daemon, and the state of every shard."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner, Result
from dagster._daemon.types import DaemonHeartbeat

from rag_assets.cli.init import write_instance
from tests.pipelines import publication, published_rows, seed_model

ROOT = Path(__file__).parents[3]
PAGES = {
    "Lisbon/people/leave.md": "# Leave\n\nEverybody takes thirty days.\n",
    "Lisbon/it/badge.md": "Ask for a badge at the desk.",
    "Oslo/people/canteen.txt": "The canteen opens at eight.",
}


@dataclass
class Company:
    """A source, a lake and a DAGSTER_HOME, and a way to run the command with these settings."""

    source: Path
    lake: Path
    home: Path
    environment: dict[str, str] = field(default_factory=dict[str, str])

    def put(self, key: str, text: str) -> None:
        path = self.source / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def command(self, *arguments: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
        """Run the installed command in its own process."""
        merged = {**self.environment, **environment}
        return subprocess.run(
            [str(Path(sys.executable).with_name("rag-assets")), *arguments],
            env={name: value for name, value in merged.items() if value is not None},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )


@pytest.fixture
def company(tmp_path: Path, model_lake: str) -> Company:
    company = Company(tmp_path / "source", tmp_path / "lake", tmp_path / "home")
    write_instance(company.home)
    for key, text in PAGES.items():
        company.put(key, text)
    seed_model(model_lake, str(company.lake))
    company.environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("RAG_", "AWS_", "DAGSTER_"))},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAG_SOURCE_URI": str(company.source),
        "RAG_LAKE_URI": str(company.lake),
        "DAGSTER_HOME": str(company.home),
        "DAGSTER_DISABLE_TELEMETRY": "1",
        "COLUMNS": "200",
    }
    return company


@pytest.fixture
def quick(company: Company, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Run the command in this process, which saves five seconds of startup."""
    import warnings

    from rag_assets.cli.main import main

    for name in [name for name in os.environ if name.startswith(("RAG_", "AWS_", "DAGSTER_"))]:
        monkeypatch.delenv(name)
    for name, value in company.environment.items():
        if name.startswith(("RAG_", "DAGSTER_")):
            monkeypatch.setenv(name, value)

    def run(*arguments: str) -> Result:
        with warnings.catch_warnings():  # the command silences some warnings process-wide
            return CliRunner().invoke(main, list(arguments))

    return run


def output_of(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


def test_without_dagster_home_the_error_says_what_to_set(company: Company) -> None:
    done = company.command("backfill", "--all", "--here", DAGSTER_HOME=None)
    assert done.returncode == 2
    assert "OrchestrationError: DAGSTER_HOME is not set to an existing directory" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 3


def test_without_a_daemon_the_error_says_how_to_start_one_and_nothing_is_launched(company: Company) -> None:
    done = company.command("backfill", "--all")
    assert done.returncode == 2
    assert "OrchestrationError: no Dagster daemon is running" in done.stderr
    for option in ("dagster-daemon run -w workspace.yaml", "dg dev", "--here"):
        assert option in done.stderr
    assert "Traceback" not in done.stderr


def test_a_daemon_that_died_five_minutes_ago_is_noticed_and_nothing_is_launched(company: Company) -> None:
    with dg.DagsterInstance.from_config(str(company.home)) as instance:
        for kind in ("BACKFILL", "QUEUED_RUN_COORDINATOR"):
            instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - 300, kind, "dead", []))
        done = company.command("backfill", "--all", "--wait")
        assert done.returncode == 2
        assert re.search(r"no Dagster daemon is running \(backfill: last heartbeat 3\d\d seconds ago", done.stderr)
        assert instance.get_backfills() == []


def test_backfill_here_indexes_every_shard_and_a_second_one_finds_nothing_to_do(company: Company) -> None:
    first = company.command("backfill", "--here")
    assert first.returncode == 0, first.stderr
    assert "3 objects in 3 shards; 3 selected (changed)" in first.stdout
    assert "3 shards indexed" in first.stdout
    assert "3 documents added" in first.stdout
    assert "Warning" not in first.stdout + first.stderr
    second = company.command("backfill", "--here")
    assert second.returncode == 0, second.stderr
    assert "0 selected (changed)" in second.stdout
    assert "nothing to do" in second.stdout
    for key in PAGES:
        assert len(published_rows(str(company.lake), key.rpartition("/")[0])) == 1


def test_states_select_shards_and_filters_narrow_the_selection(quick: Callable[..., Result], company: Company) -> None:
    assert output_of(quick("backfill", "--dry-run")).splitlines()[1:] == ["Lisbon/it", "Lisbon/people", "Oslo/people"]
    assert "1 shard indexed" in output_of(quick("backfill", "--here", "--region", "Oslo"))
    assert "nothing to do" in output_of(quick("backfill", "--dry-run", "--region", "Oslo"))
    dry = output_of(quick("backfill", "--missing", "--dry-run"))
    assert dry.splitlines()[1:] == ["Lisbon/it", "Lisbon/people"]
    assert output_of(quick("backfill", "--missing", "--dry-run", "--department", "it")).splitlines()[1:] == [
        "Lisbon/it"
    ]
    assert publication(str(company.lake), "Lisbon/it") is None  # a dry run indexes nothing

    company.put("Oslo/people/canteen.txt", "The canteen opens at nine.")
    company.put("loose.md", "Not in any shard.")
    states = quick("status")
    words = dict(line.split(maxsplit=1) for line in output_of(states).splitlines())
    assert words == {"Lisbon/it": "missing", "Lisbon/people": "missing", "Oslo/people": "changed"}
    assert "left out: 1 key outside region/department/, such as 'loose.md'" in states.stderr

    assert "2 shards indexed" in output_of(quick("backfill", "--missing", "--here"))
    assert "1 shard indexed" in output_of(quick("backfill", "--here"))
    (company.source / "Oslo/people/canteen.txt").unlink()
    words = dict(line.split(maxsplit=1) for line in output_of(quick("status")).splitlines())
    assert words == {
        "Lisbon/it": "published",
        "Lisbon/people": "published",
        "Oslo/people": "gone from the source, still served until rag-assets retire Oslo/people",
    }
    dry = output_of(quick("backfill", "--dry-run"))
    assert "2 objects in 2 shards, 1 gone from the source; 1 selected (changed)" in dry


def test_a_renamed_department_is_retired_with_one_command(quick: Callable[..., Result], company: Company) -> None:
    output_of(quick("backfill", "--here"))
    assert "the source has documents of Oslo/people" in quick("retire", "Oslo/people").stderr
    (company.source / "Oslo/people").rename(company.source / "Oslo/people & culture")
    output_of(quick("backfill", "--here", "--missing"))
    assert "still served until rag-assets retire Oslo/people" in output_of(quick("status"))
    assert "Oslo/people is retired: its" in output_of(quick("retire", "Oslo/people"))
    assert "Oslo/people was retired before" in output_of(quick("retire", "Oslo/people"))
    words = dict(re.split(r" {2,}", line, maxsplit=1) for line in output_of(quick("status")).splitlines())
    assert words["Oslo/people & culture"] == "published"
    assert "Oslo/people" not in words
    (company.source / "Oslo/people & culture").rename(company.source / "Oslo/people")
    assert "1 shard indexed" in output_of(quick("backfill", "--here", "--missing"))


def test_evaluate_prints_scores_missed_questions_and_invalid_lines(
    quick: Callable[..., Result], company: Company
) -> None:
    assert "was not evaluated: the shard has no table" in quick("evaluate", "Oslo/people").stderr
    output_of(quick("backfill", "--here"))
    golden = [
        {"question": "When does the canteen open?", "document": "canteen.txt"},
        {"question": "When does the canteen close?", "document": "canteen.txt", "quote": "at midnight"},
        {"question": "Who bakes?", "document": "bakery.md"},
    ]
    lines = [json.dumps(line) for line in golden] + ["{", ""]
    company.put("Oslo/people/_eval/questions.jsonl", "\n".join(lines))
    before = publication(str(company.lake), "Oslo/people")
    result = quick("evaluate", "Oslo/people")
    assert result.exit_code == 0, result.output
    printed = result.stdout
    assert re.match(r"version \d+: 2 golden questions\n", printed)
    assert re.search(r"^hybrid search +0\.500 +0\.500 ", printed, flags=re.MULTILINE)
    assert "not answered: When does the canteen close?\n" in printed
    assert "not in the source: Oslo/people/bakery.md\n" in printed
    assert "invalid: Oslo/people/_eval/questions.jsonl:4: " in printed
    assert publication(str(company.lake), "Oslo/people") == before


def test_here_prints_warnings_of_checks(quick: Callable[..., Result], company: Company) -> None:
    company.put("Oslo/people/empty.txt", "")
    company.put("Lisbon/it/_eval/questions.jsonl", "{")
    result = quick("backfill", "--here")
    assert result.exit_code == 0, result.output
    assert "Oslo/people: 1 document is quarantined; see rag-assets quarantine list Oslo/people\n" in result.stderr
    assert "Lisbon/it: 1 lines of golden questions are invalid" in result.stderr


def test_failed_selects_the_shards_whose_latest_run_failed(quick: Callable[..., Result], company: Company) -> None:
    output_of(quick("backfill", "--here"))
    assert "nothing to do" in output_of(quick("backfill", "--failed", "--dry-run"))
    (company.source / "Oslo/people/canteen.txt").unlink()
    company.put("Lisbon/it/badge.md", "Badges are made at the door.")

    failed = quick("backfill", "--here")
    assert failed.exit_code == 2
    assert "1 shard failed: Oslo/people; fix the cause, then run rag-assets backfill --failed" in failed.stderr
    assert "Oslo/people failed: MassDeleteRefused" in failed.stderr
    (row,) = published_rows(str(company.lake), "Lisbon/it")
    assert row["text"] == "Badges are made at the door."

    assert output_of(quick("backfill", "--failed", "--dry-run")).splitlines()[1:] == ["Oslo/people"]
    assert "1 deleted" in output_of(quick("backfill", "--failed", "--here", "--allow-mass-delete"))
    assert "nothing to do" in output_of(quick("backfill", "--failed", "--dry-run"))
    assert published_rows(str(company.lake), "Oslo/people") == []


def test_a_shard_whose_run_could_not_start_counts_as_failed(quick: Callable[..., Result], company: Company) -> None:
    """Its lease object is corrupt, so no step of its run starts."""
    lease = company.lake / "leases" / "_4cisbon.it.json"
    lease.parent.mkdir()
    lease.write_text("not a lease")
    assert quick("backfill", "--here", "--region", "Lisbon").exit_code == 2
    assert output_of(quick("backfill", "--failed", "--dry-run")).splitlines()[1:] == ["Lisbon/it"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--region", "Lisbonne"], "UnknownScope: no region 'Lisbonne' in the source or the lake; did you"),
        (["--department", "catering"], "UnknownScope: no department 'catering' in the source or the lake"),
        (["--region", "../etc"], "InvalidShardName: the region '../etc' contains '/'"),
        (["--department", ""], "InvalidShardName: the department is empty"),
    ],
)
def test_an_unknown_or_invalid_name_is_a_named_error(
    quick: Callable[..., Result], arguments: list[str], message: str
) -> None:
    result = quick("backfill", "--here", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("command", [["backfill", "--here"], ["status"]])
def test_a_missing_source_is_a_named_error(quick: Callable[..., Result], company: Company, command: list[str]) -> None:
    shutil.rmtree(company.source)
    result = quick(*command)
    assert result.exit_code == 2
    assert "SourceRefused: the source folder" in result.stderr
    assert "check RAG_SOURCE_URI" in result.stderr


def test_ignored_keys_outside_region_and_department_are_reported(
    quick: Callable[..., Result], company: Company
) -> None:
    company.put("Oslo/loose.md", "Not in any shard.")
    company.put("Oslo/people/~$note.md", "A lock of an editor.")
    assert (
        "left out: 1 ignored file, such as 'Oslo/people/~$note.md'; "
        "1 key outside region/department/, such as 'Oslo/loose.md'"
    ) in output_of(quick("backfill", "--dry-run"))
    assert "(1 left out)" in output_of(quick("status"))


def test_an_empty_or_flat_source_says_where_documents_belong(quick: Callable[..., Result], company: Company) -> None:
    shutil.rmtree(company.source)
    company.source.mkdir()
    (company.source / "report.md").write_text("Not in any shard.")
    result = quick("backfill", "--dry-run")
    assert "put documents into folders region/department/" in result.stderr
    assert "1 key outside region/department/, such as 'report.md'" in result.stdout


def test_the_command_line_rolls_back_a_shard_shows_its_hold_and_releases_it(
    company: Company, quick: Callable[..., Result]
) -> None:
    output_of(quick("backfill", "--all", "--here"))
    company.put("Oslo/people/canteen.txt", "The canteen opens at nine.")
    output_of(quick("backfill", "--here"))

    first, second = (line.split() for line in reversed(output_of(quick("history", "Oslo/people")).splitlines()))
    assert (first[5], second[5]) == ("kept", "current")
    assert "1 documents, 1 chunks, 0 quarantined" in " ".join(second)

    assert "and on hold: runs publish nothing" in output_of(quick("rollback", "Oslo/people"))
    assert published_rows(str(company.lake), "Oslo/people")[0]["text"] == "The canteen opens at eight."
    history = output_of(quick("history", "Oslo/people"))
    assert "held by" in history
    assert ["rolled back to by" in line for line in history.splitlines()] == [True, False, False, False]
    status = output_of(quick("status"))
    assert "serves an older version until rag-assets release Oslo/people" in next(
        line for line in status.splitlines() if "Oslo/people" in line
    )
    assert "held" not in next(line for line in status.splitlines() if "Lisbon/it" in line)
    company.put("Oslo/people/canteen.txt", "The canteen opens at ten.")
    assert "built but not published: Oslo/people (held by" in quick("backfill", "--here").stderr

    assert "released" in output_of(quick("release", "Oslo/people"))
    assert "is not on hold" in output_of(quick("release", "Oslo/people"))
    output_of(quick("backfill", "--here"))
    assert published_rows(str(company.lake), "Oslo/people")[0]["text"] == "The canteen opens at ten."
    assert "3 shards" in output_of(quick("maintain"))


def test_a_quarantine_retry_names_the_documents_that_are_still_quarantined(
    company: Company, quick: Callable[..., Result]
) -> None:
    company.put("Oslo/people/report.pdf", "%PDF-1.7 cut off")
    output_of(quick("backfill", "--here"))
    listed = quick("quarantine", "list")
    assert listed.stdout.split() == ["malformed", "1", "attempt", "Oslo/people/report.pdf"]
    assert listed.stderr == "1 quarantined\n"
    shown = output_of(quick("quarantine", "show", "Oslo/people/report.pdf"))
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in shown.splitlines())
    assert list(facts) == ["document", "reason", "size", "first seen", "last tried", "attempts", "etag", "extractor"]
    assert facts["document"] == "Oslo/people/report.pdf"
    assert facts["size"] == "16 bytes"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", facts["first seen"])
    assert facts["attempts"] == "1"
    retried = quick("quarantine", "retry", "Oslo/people/report.pdf", "--here")
    assert "still quarantined: Oslo/people/report.pdf (malformed)" in retried.stderr


def test_a_lake_without_published_shards_is_named(company: Company, quick: Callable[..., Result]) -> None:
    for command in (("quarantine", "list"), ("maintain",)):
        assert quick(*command).stderr == f"nothing is published in {company.lake}; check RAG_LAKE_URI\n"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("https://x/y", "SettingsError: RAG_SOURCE_URI: https:// is not supported"),
        (__file__, "is a file, not a folder; check RAG_SOURCE_URI"),
    ],
)
def test_a_source_of_the_wrong_kind_is_an_error_that_names_the_setting(
    quick: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    monkeypatch.setenv("RAG_SOURCE_URI", source)
    result = quick("status")
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rollback", "Oslo/nowhere"], "VersionNotKept: shard Oslo/nowhere was never published"),
        (["rollback", "Oslo"], "InvalidShardName"),
        (["history", "Oslo/nowhere"], "Oslo/nowhere is not published"),
        (["retire", "Oslo/nowhere"], "the lake has no shard Oslo/nowhere"),
        (["quarantine", "show", "Oslo/people/canteen.txt"], "is not quarantined"),
        (["quarantine", "show", "canteen.txt"], "is not a document's key: expected region/department/name"),
        (["quarantine", "list", "Oslo"], "InvalidShardName"),
        (["quarantine", "retry"], "specify the keys to retry"),
    ],
)
def test_a_command_about_something_that_does_not_exist_fails_with_a_clear_error(
    quick: Callable[..., Result], arguments: list[str], message: str
) -> None:
    result = quick(*arguments)
    assert result.exit_code == 2
    assert message in result.output
