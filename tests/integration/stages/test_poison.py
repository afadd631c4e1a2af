"""Promise 3 through Dagster: unreadable documents are quarantined with a reason, and the others are published."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import docx
import pytest

from rag_assets.extraction.sandbox.pool import ParserLimits, ParserPool
from rag_assets.pipeline import Pipeline
from rag_assets.stages.documents import Parse
from rag_assets.storage.schemas import QUARANTINE
from tests.documents import case_bytes
from tests.pipelines import failure_of, run_shard, stage_rows
from tests.shard_harness import Bench, on_folders

pytestmark = on_folders
POISON = (sys.executable, str(Path(__file__).parents[2] / "poison_parser.py"))
# Dagster copies resources, so the module keeps the pool.
_POOLS: list[ParserPool] = []


class PoisonedPipeline(Pipeline):
    """The pipeline with parsers that fail in the way a document's key names."""

    def parser(self) -> Parse:
        return _POOLS[-1].read


@pytest.fixture
def poisoned(bench: Bench) -> Iterator[Pipeline]:
    _POOLS.append(ParserPool(ParserLimits(seconds=2, memory=448 * 2**20), 2, command=POISON))
    yield PoisonedPipeline(bench.settings)
    _POOLS.pop().close()


def reasons(bench: Bench) -> dict[str, str]:
    return {
        row["key"].rpartition("/")[2] + (f"#{row['part']}" if row["part"] else ""): row["reason"]
        for row in stage_rows(bench.lake, QUARANTINE, bench.shard)
    }


def test_documents_that_crash_hang_or_exhaust_memory_are_quarantined_and_others_published(
    bench: Bench, poisoned: Pipeline
) -> None:
    for name in ("crash.txt", "hang.txt", "swell.txt", "quit.txt", "first.txt", "last.txt"):
        bench.put(name, f"This is {name}.")
    said = bench.run(poisoned)
    assert reasons(bench) == {
        "crash.txt": "crashed",
        "quit.txt": "crashed",
        "hang.txt": "timed_out",
        "swell.txt": "out_of_memory",
    }
    assert bench.texts().keys() == {"first.txt", "last.txt"}
    assert said["published"]["quarantined"] == 4
    assert said["raw_documents"]["quarantine"].records[0].data["attempts"] == 1


def test_a_poisonous_document_is_not_read_again_until_a_retry_is_requested(
    bench: Bench, poisoned: Pipeline, quarantine: Callable[..., Any]
) -> None:
    bench.put("crash.txt", "Poison.")
    bench.put("page.txt", "A page.")
    bench.run(poisoned)
    started = _POOLS[-1].started
    bench.run(poisoned)
    assert _POOLS[-1].started == started
    assert "marked 1 document of 1 shard for a retry" in quarantine("retry", f"{bench.shard}/crash.txt", "--here")
    assert reasons(bench) == {}  # the command's own parsers are not poisoned
    assert bench.texts().keys() == {"crash.txt", "page.txt"}


@pytest.fixture
def quarantine(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """Run `rag-assets quarantine` on the bench's source and lake."""
    import warnings

    from click.testing import CliRunner

    from rag_assets.cli.main import main

    (tmp_path / "home").mkdir()
    monkeypatch.setenv("RAG_SOURCE_URI", bench.source.uri)
    monkeypatch.setenv("RAG_LAKE_URI", bench.lake)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))

    def run(*arguments: str) -> str:
        with warnings.catch_warnings():
            result = CliRunner().invoke(main, ["quarantine", *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    return run


def test_the_quarantine_is_listed_shown_and_filtered(bench: Bench, quarantine: Callable[..., str]) -> None:
    bench.put("empty.txt", "")
    bench.put("photo.bin", bytes(range(256)))
    bench.put("page.txt", "A page.")
    bench.run()
    listed = quarantine("list", bench.shard)
    assert "unsupported_type" in listed
    assert f"{bench.shard}/empty.txt" in listed
    assert "2 quarantined" in listed
    assert "photo.bin" not in quarantine("list", bench.shard, "--reason", "empty")
    shown = quarantine("show", f"{bench.shard}/empty.txt")
    assert "the file has no bytes" in shown
    assert "attempts    1" in shown
    assert '"reason": "empty"' in quarantine("list", bench.shard, "--json")


def message(text: str, attachments: dict[str, bytes]) -> bytes:
    made = EmailMessage()
    made["Subject"] = "The new berths"
    made["From"] = "ines@vellamar.example"
    made["To"] = "all@vellamar.example"
    made["Date"] = "Mon, 02 Nov 2026 09:00:00 +0000"
    made.set_content(text)
    for name, data in attachments.items():
        made.add_attachment(data, maintype="application", subtype="octet-stream", filename=name)
    return made.as_bytes()


def a_docx(text: str) -> bytes:
    document = docx.Document()
    document.add_paragraph(text)
    target = io.BytesIO()
    document.save(target)
    return target.getvalue()


def test_attachments_are_separate_documents_and_follow_changes_of_their_message(bench: Bench) -> None:
    plan, notes = a_docx("Berth nine opens in May."), b"Berth ten stays closed."
    bench.put("mail.eml", message("See the plan.", {"plan.docx": plan, "notes.txt": notes, "scan.bin": bytes(256)}))
    bench.put("page.txt", "A page.")
    said = bench.run()
    texts = bench.texts()
    assert texts.keys() == {"mail.eml", "mail.eml#plan.docx", "mail.eml#notes.txt", "page.txt"}
    assert texts["mail.eml#plan.docx"] == "Berth nine opens in May."
    assert list(reasons(bench)) == ["mail.eml#scan.bin"]
    assert (said["raw_documents"]["documents"], said["raw_documents"]["added"]) == (4, 2)

    before = bench.state()
    bench.run()
    assert bench.state() == before

    bench.put("mail.eml", message("See the other plan.", {"plan.docx": a_docx("Berth nine opens in June.")}))
    bench.run(keys=["mail.eml"])
    texts = bench.texts()
    assert texts.keys() == {"mail.eml", "mail.eml#plan.docx", "page.txt"}
    assert texts["mail.eml#plan.docx"] == "Berth nine opens in June."
    assert reasons(bench) == {}

    bench.delete("mail.eml")
    result = run_shard(bench.instance, bench.settings, bench.shard)
    assert result.success, failure_of(result)
    assert bench.texts().keys() == {"page.txt"}


def test_a_message_that_becomes_unreadable_keeps_its_attachments_as_stale(bench: Bench) -> None:
    bench.put("mail.eml", message("See the plan.", {"notes.txt": b"Berth ten stays closed."}))
    bench.run()
    bench.put("mail.eml", bytes(range(256)))
    said = bench.run()
    assert said["raw_documents"]["stale"] == 2
    assert bench.texts().keys() == {"mail.eml", "mail.eml#notes.txt"}
    assert list(reasons(bench)) == ["mail.eml"]


def test_a_document_that_could_be_read_in_part_is_published_and_reported_until_it_is_complete(bench: Bench) -> None:
    bench.put("contract.pdf", case_bytes("mixed_scan.pdf"))
    bench.run()
    assert bench.texts().keys() == {"contract.pdf"}
    assert reasons(bench) == {"contract.pdf#pages without text": "incomplete"}

    before = bench.state()
    bench.run()
    assert bench.state() == before

    bench.put("contract.pdf", case_bytes("form.pdf"))
    bench.run()
    assert reasons(bench) == {}
