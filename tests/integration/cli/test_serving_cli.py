"""The `rag-serving` command, in its own process on a real lake."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rag_serving import ShardInfo
from rag_serving.results import Answer, Hit
from tests.fake_llm import StandIn

BRATTHOLM = "What was the cause of the Brattholm outage in November 2023?"
OUTAGE = "oslo/engineering/reviews/2023-11-brattholm-outage.md"


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `rag-serving` with these variables and without this process's RAG_* variables."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAG_")}
    return subprocess.run(
        [str(Path(sys.executable).with_name("rag-serving")), *arguments],
        env={**env, "PYTHONIOENCODING": "utf-8", **variables},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def test_ask_prints_the_answer_its_citations_and_the_cache_state(sample_lake: str) -> None:
    result = run("ask", BRATTHOLM, "--region", "oslo", RAG_LAKE_URI=sample_lake)
    assert result.returncode == 0, result.stderr
    assert "Quoted from the documents" in result.stdout
    cited = [line for line in result.stdout.splitlines() if OUTAGE in line and "[oslo/engineering]" in line]
    assert cited
    assert all("characters" in line for line in cited)
    assert "cache: miss" in result.stdout
    assert "note:" not in result.stdout


def test_ask_with_json_prints_the_answer(sample_lake: str) -> None:
    result = run("ask", BRATTHOLM, "--department", "engineering", "-k", "3", "--json", RAG_LAKE_URI=sample_lake)
    assert result.returncode == 0, result.stderr
    answer = Answer.model_validate_json(result.stdout)
    assert answer.kind == "extract"
    assert answer.cache == "miss"
    assert {citation.shard for citation in answer.citations} <= {"oslo/engineering", "lisbon/engineering"}


def test_ask_prints_the_cached_question_of_a_semantic_hit(sample_lake: str, redis_clean: str) -> None:
    variables = {"RAG_LAKE_URI": sample_lake, "RAG_REDIS_URL": redis_clean, "RAG_CACHE_TIMEOUT": "5"}
    assert "cache: miss" in run("ask", BRATTHOLM, **variables).stdout
    assert "cache: exact" in run("ask", BRATTHOLM.lower(), **variables).stdout
    reworded = run("ask", "What caused the Brattholm outage in November 2023?", **variables).stdout
    assert f"with “{BRATTHOLM}”" in reworded
    assert "cache: semantic (similarity 0.9" in reworded


def test_ask_without_a_working_cache_answers_and_reports_the_bypass(sample_lake: str) -> None:
    result = run("ask", BRATTHOLM, RAG_LAKE_URI=sample_lake, RAG_REDIS_URL="redis://127.0.0.1:1/0")
    assert result.returncode == 0, result.stderr
    assert "cache: bypass" in result.stdout
    assert "note: the cache could not be reached" in result.stdout


def test_doctor_tells_what_works_and_what_the_model_says_is_wrong(sample_lake: str, stand_in_here: StandIn) -> None:
    fine = run("doctor", RAG_LAKE_URI=sample_lake)
    assert fine.returncode == 0, fine.stderr
    assert "none is configured" in fine.stdout
    assert "published shards" in fine.stdout
    model = {"RAG_LLM_MODEL": "openai/stand-in", "RAG_LLM_RETRIES": "0", **stand_in_here.environment}
    answered = run("doctor", RAG_LAKE_URI=sample_lake, **model)
    assert answered.returncode == 0, answered.stderr
    assert "ok      model openai/stand-in: answered in" in answered.stdout
    stand_in_here.status, stand_in_here.message = 401, "Incorrect API key"
    wrong = run("doctor", RAG_LAKE_URI=sample_lake, **model)
    assert wrong.returncode == 1
    assert "FAILED  model openai/stand-in" in wrong.stdout
    assert "Incorrect API key" in wrong.stdout


def test_doctor_tells_a_missing_lake_from_an_empty_one(tmp_path: Path) -> None:
    for lake, problem in ((tmp_path, ", which exists"), (tmp_path / "none", " does not exist")):
        result = run("doctor", RAG_LAKE_URI=str(lake))
        assert result.returncode == 1
        assert re.search(rf"FAILED  lake: .*{lake}{problem}", result.stdout)


def test_search_prints_each_passage_with_its_rank_and_source(sample_lake: str) -> None:
    result = run("search", BRATTHOLM, "-k", "2", RAG_LAKE_URI=sample_lake)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 4
    assert lines[0].split()[0] == "1"
    assert OUTAGE in lines[0]
    assert lines[2].split()[0] == "2"


def test_search_with_json_prints_a_list_of_hits(sample_lake: str) -> None:
    result = run("search", "有給休暇", "--region", "nagoya", "--json", RAG_LAKE_URI=sample_lake)
    assert result.returncode == 0, result.stderr
    hits = [Hit.model_validate(each) for each in json.loads(result.stdout)]
    assert [hit.rank for hit in hits] == list(range(1, 9))
    assert "有給休暇" in result.stdout


def test_scope_options_may_be_repeated(sample_lake: str) -> None:
    scope = ("--region", "oslo", "--region", "lisbon", "--department", "people")
    result = run("search", "parental leave", *scope, "--json", RAG_LAKE_URI=sample_lake)
    assert {each["shard"] for each in json.loads(result.stdout)} == {"oslo/people", "lisbon/people"}


def test_shards_prints_every_published_shard(sample_lake: str) -> None:
    result = run("shards", RAG_LAKE_URI=sample_lake)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 11
    assert all("documents" in line and "chunks" in line for line in lines)
    assert "1 quarantined" in next(line for line in lines if line.startswith("lisbon/finance"))


def test_shards_with_json_prints_every_published_shard(sample_lake: str) -> None:
    result = run("shards", "--json", RAG_LAKE_URI=sample_lake)
    entries = [ShardInfo.model_validate(each) for each in json.loads(result.stdout)]
    assert len(entries) == 11


def test_shards_of_an_empty_lake_reports_that_nothing_is_published(tmp_path: Path) -> None:
    result = run("shards", RAG_LAKE_URI=str(tmp_path))
    assert (result.returncode, result.stdout) == (0, "")
    assert f"nothing is published in {tmp_path}; check RAG_LAKE_URI" in result.stderr


def test_a_list_of_no_keys_names_the_file(tmp_path: Path) -> None:
    result = run("keys", "list", RAG_HTTP_KEYS=str(tmp_path / "keys.json"))
    assert (result.returncode, result.stdout) == (0, "")
    assert f"no keys in {tmp_path / 'keys.json'}; create one" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("ask", ""), "InvalidQuestion"),
        (("ask", BRATTHOLM, "--region", "olso"), "UnknownScope"),
        (("search", BRATTHOLM, "--region", "../oslo"), "InvalidShardName"),
    ],
)
def test_invalid_input_exits_with_status_2_and_a_named_error(
    sample_lake: str, arguments: tuple[str, ...], name: str
) -> None:
    result = run(*arguments, RAG_LAKE_URI=sample_lake)
    assert result.returncode == 2
    assert result.stderr.startswith(f"Error: {name}: ")
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"RAG_CACHE_TTL": "banana"}, "SettingsError"),
        ({"RAG_REDIS_URL": "redis://:correct-horse@127.0.0.1:banana/0"}, "SettingsError"),
        ({"RAG_LAKE_URI": "gs://bucket/lake"}, "SettingsError: RAG_LAKE_URI: gs:// is not supported"),
        ({"RAG_LAKE_URI": "s3:/bucket/lake"}, "SettingsError: RAG_LAKE_URI: s3:/ is not supported"),
        ({"RAG_LAKE_URI": "/no/such/lake"}, "LakeUnavailable: the folder /no/such/lake does not exist"),
        ({"RAG_LAKE_URI": "/dev/null/lake"}, "LakeUnavailable"),
        (
            {"RAG_LAKE_URI": "s3://bucket/lake", "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_REGION": "x"},
            "LakeUnavailable",
        ),
    ],
    ids=["setting", "Redis URL", "scheme", "one slash", "missing lake", "not a folder", "no S3"],
)
def test_an_invalid_environment_exits_with_status_2_and_a_named_error(
    sample_lake: str, variables: dict[str, str], name: str
) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "correct-horse"}
    result = run("ask", BRATTHOLM, **{"RAG_LAKE_URI": sample_lake, **keys, **variables})
    assert result.returncode == 2
    assert f"Error: {name}" in result.stderr
    assert "Traceback" not in result.stderr
    assert "correct-horse" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("search", "x", "-k", "101"), "101 is not in the range 1<=x<=100"),
        (("search", "x", "--from", "yesterday"), "'yesterday' is not a date; write YYYY-MM-DD"),
        (("serve", "--port", "99999"), "99999 is not in the range 1<=x<=65535"),
        (("serve", "--workers", "0"), "0 is not in the range 1<=x<=256"),
        (("keys", "create", "x", "--per-minute", "0"), "0 is not in the range 1<=x<=1000000"),
        (("calibrate", __file__, "--out", "x", "--sure", "2"), "2.0 is not in the range 0<x<=1"),
    ],
)
def test_an_option_out_of_range_is_a_usage_error(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert message in result.stderr


def test_serve_names_an_address_that_it_cannot_listen_on_before_it_loads_anything(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        used = run("serve", "--open", "--port", str(port), RAG_LAKE_URI=str(tmp_path))
    foreign = run("serve", "--open", "--host", "192.0.2.1", RAG_LAKE_URI=str(tmp_path))
    assert (used.returncode, foreign.returncode) == (2, 2)
    assert used.stderr == (
        f"Error: port {port} on 127.0.0.1 is in use; stop the other program or choose another with --port\n"
    )
    assert foreign.stderr.startswith("Error: 192.0.2.1 is not an address of this machine; ")


def test_a_missing_question_is_a_usage_error(sample_lake: str) -> None:
    result = run("ask", RAG_LAKE_URI=sample_lake)
    assert result.returncode == 2
    assert "Usage:" in result.stderr


def test_help_and_version_need_no_lake() -> None:
    assert run("--version").stdout.startswith("rag-serving")
    assert "ask" in run("-h").stdout
