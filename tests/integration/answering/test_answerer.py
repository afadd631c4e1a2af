"""Asking a real lake with a real Redis: revalidation, sharing between processes, judging, and limits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from rag_serving.answering.generation import LanguageModel
from rag_serving.clients.lake import AsyncRagClient
from rag_serving.clients.sync import RagClient
from rag_serving.errors import InvalidArgument, LakeUnavailable, Overloaded
from rag_serving.events import Citations, Delta, Done, Event, Sources
from rag_serving.results import Answer
from rag_serving.settings import ServingSettings
from tests.fake_llm import stand_in_model
from tests.pipelines import failure_of, run_shard, seed_model, settings_for

PER_DIEM = "What is the travel per-diem in Oslo?"
REWORDED = "What is the travel per diem for Oslo?"
PARKING = "Where can I park a bicycle?"


class CountingModel:
    """A model that answers with the first source, word by word, and records its prompts."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.gate: asyncio.Event | None = None

    async def __call__(self, **arguments: Any) -> AsyncIterator[Any]:
        self.prompts.append(arguments["messages"][1]["content"])
        first = self.prompts[-1].split("[1] ", 1)[1].split("\n\n[2] ")[0].split("\n</sources>")[0]
        return self._pieces(first.splitlines()[-1])

    async def _pieces(self, said: str) -> AsyncIterator[Any]:
        if self.gate is not None:
            await self.gate.wait()
        for word in (*said.split(" "), "[1]."):
            yield SimpleNamespace(choices=[SimpleNamespace(delta=SimpleNamespace(content=f"{word} "))])
        usage = SimpleNamespace(prompt_tokens=10, completion_tokens=2)
        yield SimpleNamespace(choices=[], usage=usage)

    @property
    def model(self) -> LanguageModel:
        return LanguageModel(
            "counting", timeout=30, retries=0, max_tokens=50, completion=self, price=lambda _, p, c: (p + c) / 4
        )


class Company:
    """A source of two shards, indexed by the pipeline."""

    def __init__(self, folder: Path, model_lake: str, instance: dg.DagsterInstance) -> None:
        self.source, self.lake = folder / "source", str(folder / "lake")
        self._instance = instance
        seed_model(model_lake, self.lake)

    def write(self, key: str, text: str) -> None:
        path = self.source / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def publish(self, shard: str = "oslo/people") -> None:
        result = run_shard(self._instance, settings_for(str(self.source), self.lake), shard)
        assert result.success, failure_of(result)


@pytest.fixture
def company(tmp_path: Path, model_lake: str, instance: dg.DagsterInstance) -> Company:
    made = Company(tmp_path, model_lake, instance)
    made.write("oslo/people/travel.md", "# Travel\n\nThe travel per-diem in Oslo is NOK 780.")
    made.write("oslo/people/parking.md", "# Parking\n\nBicycles are parked in the yard behind the canteen.")
    made.write("oslo/people/leave.md", "# Leave\n\nThere are 25 days of leave a year.")
    made.publish()
    return made


@contextlib.contextmanager
def open_client(
    company: Company, redis_url: str | None, model: CountingModel | None = None, **values: Any
) -> Iterator[RagClient]:
    settings = ServingSettings.model_validate(
        {
            "lake_uri": company.lake,
            "redis_url": redis_url,
            "cache_prefix": "test",
            "cache_timeout": 5,
            "catalog_refresh": 0,
            **values,
        }
    )
    language_model = None if model is None else model.model
    with RagClient(lambda: AsyncRagClient(settings, model=language_model)) as client:
        yield client


@pytest.fixture(params=["redis", "memory"])
def store(request: pytest.FixtureRequest) -> str | None:
    return request.getfixturevalue("redis_clean") if request.param == "redis" else None


# Revalidation.


def test_publishing_other_documents_keeps_a_cached_answer_and_changing_its_evidence_does_not(
    company: Company, store: str | None
) -> None:
    model = CountingModel()
    with open_client(company, store, model) as client:
        first = client.ask(PER_DIEM, k=1)
        assert (first.cache, "NOK 780" in first.text) == ("miss", True)

        company.write("oslo/people/canteen.md", "# Canteen\n\nLunch is served from eleven to one.")
        company.publish()
        moved = client.ask(PER_DIEM, k=1)
        again = client.ask(PER_DIEM, k=1)
        assert (moved.cache, again.cache) == ("revalidated", "exact")
        assert moved.text == first.text
        assert (moved.tokens, moved.cost) == ({}, 0.0)
        assert moved.cache_reason is not None

        company.write("oslo/people/travel.md", "# Travel\n\nThe travel per-diem in Oslo is NOK 820.")
        company.publish()
        changed = client.ask(PER_DIEM, k=1)
        assert (changed.cache, "NOK 820" in changed.text) == ("miss", True)
        assert len(model.prompts) == 2


def test_a_cached_answer_has_the_marks_of_its_own_request_and_not_those_of_another(
    company: Company, store: str | None
) -> None:
    company.write("lisbon/people/travel.md", "# Travel\n\nThe travel per-diem in Lisbon is EUR 48.")
    company.publish("lisbon/people")
    question = "What is the travel per-diem in Oslo or Lisbon?"
    with open_client(company, store, CountingModel()) as client:
        named = client.ask(question, regions=["lisbon"])
        hidden = client.ask(question, within=["lisbon/*"])
        assert (named.cache, named.degraded) == ("miss", ("outside_scope:oslo",))
        assert (hidden.cache, hidden.degraded) == ("exact", ())
        assert client.ask(question, regions=["lisbon"]).degraded == ("outside_scope:oslo",)
    with open_client(company, store) as client:
        history = [{"question": "Is there a per-diem?", "answer": "Yes."}]
        for state in ("miss", "exact"):
            answer = client.ask(PER_DIEM)
            assert (answer.cache, answer.degraded) == (state, ())
        followed = client.ask(PER_DIEM, history=history)
        assert (followed.cache, followed.degraded) == ("exact", ("history_not_read",))


def test_concurrent_callers_who_see_other_shards_do_not_share_what_is_said_of_the_scope(company: Company) -> None:
    company.write("lisbon/people/travel.md", "# Travel\n\nThe travel per-diem in Lisbon is EUR 48.")
    company.publish("lisbon/people")

    async def go() -> None:
        model = CountingModel()
        model.gate = asyncio.Event()
        settings = ServingSettings.model_validate({"lake_uri": company.lake})
        async with AsyncRagClient(settings, model=model.model) as client:
            await client.warm()
            question = "What is the travel per-diem in Oslo or Lisbon?"
            scopes = ({"regions": ["lisbon"]}, {"within": ["lisbon/*"]})
            asked = [asyncio.create_task(client.ask(question, **scope)) for scope in scopes]
            await asyncio.sleep(0.5)
            model.gate.set()
            named, hidden = await asyncio.gather(*asked)
        assert (named.degraded, hidden.degraded) == (("outside_scope:oslo",), ())

    asyncio.run(go())


def test_a_paraphrase_hits_an_answer_whose_evidence_is_unchanged_after_a_publish(
    company: Company, store: str | None
) -> None:
    model = CountingModel()
    with open_client(company, store, model) as client:
        client.ask(PER_DIEM, k=1)
        company.write("oslo/people/parking.md", "# Parking\n\nBicycles are parked in the cellar.")
        company.publish()
        reworded = client.ask(REWORDED, k=1)
        assert (reworded.cache, reworded.cached_question) == ("semantic", PER_DIEM)
        assert client.ask(PER_DIEM, k=1).cache == "exact"  # revalidation moved its entry

        company.write("oslo/people/travel.md", "# Travel\n\nThe travel per-diem in Oslo is NOK 820.")
        company.publish()
        changed = client.ask(REWORDED, k=1)
        assert (changed.cache, "NOK 820" in changed.text) == ("miss", True)
    assert len(model.prompts) == 2


def test_an_answer_is_revalidated_with_its_stored_form_of_the_question(company: Company, store: str | None) -> None:
    model = CountingModel()
    with open_client(company, store, model) as client:
        client.ask(PER_DIEM, k=2)
        company.write("oslo/people/canteen.md", "# Canteen\n\nLunch is served from eleven to one.")
        company.publish()
        moved = client.ask(f"  {PER_DIEM.lower().rstrip('?')}", k=2)
    assert (moved.cache, moved.question) == ("revalidated", PER_DIEM.lower().rstrip("?"))
    assert len(model.prompts) == 1


def test_a_citation_of_a_revalidated_answer_has_the_current_offsets_of_its_passage(company: Company) -> None:
    with open_client(company, None, CountingModel()) as client:
        first = client.ask(PER_DIEM, k=1)
        text = "# Preface\n\n" + "All of this holds for every office. " * 40 + "\n\n"
        company.write("oslo/people/travel.md", text + "# Travel\n\nThe travel per-diem in Oslo is NOK 780.")
        company.publish()
        moved = client.ask(PER_DIEM, k=1)
    assert moved.text == first.text
    if moved.cache == "revalidated":  # the passage has the same text and so the same id
        assert moved.citations[0].start > first.citations[0].start


# Single flight.


def test_a_hundred_callers_in_three_processes_make_one_model_call(company: Company, redis_clean: str) -> None:
    with stand_in_model() as stand_in:
        stand_in.words, stand_in.pause = ("NOK 780", " [1]."), 0.3
        command = [sys.executable, "-W", "ignore", "-m", "tests.asking_process"]
        processes = [
            subprocess.Popen(
                [*command, company.lake, redis_clean, "openai/stand-in", askers, PER_DIEM],
                env={**os.environ, **stand_in.environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for askers in ("34", "33", "33")
        ]
        try:
            for process in processes:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
            outputs = [process.communicate("go\n", timeout=120)[0] for process in _all_at_once(processes)]
        finally:
            for process in processes:
                process.kill()
                process.wait()
    results = [json.loads(output) for output in outputs]
    assert len(stand_in.requests) == 1
    assert {text for one in results for text in one["texts"]} == {"NOK 780 [1]."}
    assert sum(one["calls"] for one in results) == 1
    assert sum(one["paid"] for one in results) == 1


def _all_at_once(processes: list[subprocess.Popen[str]]) -> list[subprocess.Popen[str]]:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return processes


def test_another_process_takes_over_from_one_that_dies_while_answering(company: Company, redis_clean: str) -> None:
    with stand_in_model() as stand_in:
        stand_in.faults = {"dying": "hangs"}
        stand_in.words = ("NOK 780", " [1].")
        command = [sys.executable, "-W", "ignore", "-m", "tests.asking_process", company.lake, redis_clean]
        dying = subprocess.Popen(
            [*command, "openai/dying", "1", PER_DIEM],
            env={**os.environ, **stand_in.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert dying.stdout is not None
            assert dying.stdin is not None
            assert dying.stdout.readline() == "ready\n"
            dying.stdin.write("go\n")
            dying.stdin.flush()
            wait_until(lambda: len(stand_in.requests) == 1)
            # The same model name, so that it waits for the same answer; its own calls succeed.
            stand_in.faults = {}
            heir = subprocess.Popen(
                [*command, "openai/dying", "3", PER_DIEM],
                env={**os.environ, **stand_in.environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert heir.stdout is not None
            assert heir.stdin is not None
            assert heir.stdout.readline() == "ready\n"
            heir.stdin.write("go\n")
            heir.stdin.flush()
            dying.kill()
            result = json.loads(heir.communicate(timeout=60)[0])
        finally:
            dying.kill()
            dying.communicate()
    assert result["texts"] == ["NOK 780 [1]."]
    assert len(stand_in.requests) == 2


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    import time

    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# Events.


async def events_of(client: AsyncRagClient, question: str, **arguments: Any) -> list[Event]:
    return [event async for event in client.stream(question, **arguments)]


def test_a_hit_streams_the_same_sequence_of_events_as_a_miss(company: Company) -> None:
    async def go() -> None:
        settings = ServingSettings.model_validate({"lake_uri": company.lake})
        async with AsyncRagClient(settings, model=CountingModel().model) as client:
            miss = await events_of(client, PER_DIEM)
            hit = await events_of(client, PER_DIEM)
        for events, state in ((miss, "miss"), (hit, "exact")):
            assert isinstance(events[0], Sources)
            assert all(isinstance(event, Delta) for event in events[1:-2])
            assert isinstance(events[-2], Citations)
            assert isinstance(events[-1], Done)
            answer = events[-1].answer
            assert answer.cache == state
            text = "".join(event.text for event in events[1:-2] if isinstance(event, Delta))
            assert " ".join(text.split()) == " ".join(answer.text.split())
            assert events[-2].citations == answer.citations
        assert len(miss) > 4

    asyncio.run(go())


# Feedback, notes and shadow mode.


def test_feedback_drops_a_wrong_answer_from_the_cache_and_keeps_the_pair_for_review(
    company: Company, store: str | None
) -> None:
    with open_client(company, store, CountingModel()) as client:
        client.ask(PER_DIEM)
        reworded = client.ask(REWORDED)
        assert reworded.cache == "semantic"
        with pytest.raises(InvalidArgument, match="tenant"):
            client.feedback(reworded, correct=False, tenant="another")
        assert client.feedback(reworded, correct=False)
        assert client.ask(PER_DIEM).cache == "miss"
        assert not client.feedback(reworded.model_copy(update={"entry": "x' OR 1"}), correct=False)
        right = client.ask(PER_DIEM)
        assert not client.feedback(right, correct=True)
        assert client.ask(PER_DIEM).cache == "exact"
        notes = client.notes()
    judged = [(note.asked, note.cached, note.same) for note in notes if note.kind == "feedback"]
    assert (REWORDED, PER_DIEM, False) in judged


def test_a_near_miss_reports_the_reason_and_is_noted_for_review(company: Company, store: str | None) -> None:
    with open_client(company, store, CountingModel()) as client:
        client.ask("What is the travel per-diem in Oslo in 2025?")
        refused = client.ask("What is the travel per-diem in Oslo in 2026?")
        (note,) = client.notes()
        stats = client.stats()
    assert refused.cache == "miss"
    assert refused.cache_reason is not None
    assert note.guard is not None
    assert f"refused by {note.guard}" in refused.cache_reason
    assert note.kind == "near_miss"
    assert note.asked_evidence
    assert stats["miss"] == 2


def test_shadow_mode_serves_nothing_from_the_cache_and_notes_would_be_hits(company: Company, store: str | None) -> None:
    model = CountingModel()
    with open_client(company, store, model, cache_mode="shadow") as client:
        states = [client.ask(question).cache for question in (PER_DIEM, PER_DIEM, REWORDED)]
        notes = client.notes()
        shadows = client.stats()["shadow"]
    assert states == ["miss"] * 3
    assert len(model.prompts) == 3
    assert shadows == 2
    assert [(note.kind, note.asked, note.cached) for note in notes] == [("shadow", REWORDED, PER_DIEM)]


def test_cache_mode_off_neither_looks_up_nor_stores_answers(company: Company, store: str | None) -> None:
    model = CountingModel()
    with open_client(company, store, model, cache_mode="off") as client:
        answers = [client.ask(PER_DIEM) for _ in range(2)]
    assert [answer.cache for answer in answers] == ["bypass"] * 2
    assert [answer.entry for answer in answers] == [None] * 2
    assert len(model.prompts) == 2


# Weak evidence, costs, limits.


def test_a_question_without_relevant_evidence_is_refused_without_a_model_call(company: Company) -> None:
    model = CountingModel()
    with open_client(company, None, model) as client:
        answer = client.ask("Who won the chess olympiad?")
    assert (answer.kind, answer.citations) == ("none", ())
    assert model.prompts == []


def test_an_answer_reports_its_tokens_and_cost_and_a_hit_costs_nothing(company: Company) -> None:
    with open_client(company, None, CountingModel()) as client:
        first, second = client.ask(PER_DIEM), client.ask(PER_DIEM)
    assert (first.tokens, first.cost) == ({"prompt": 10, "completion": 2}, 3.0)
    assert (second.tokens, second.cost) == ({}, 0.0)


def test_questions_over_the_queue_limit_are_rejected_and_slow_ones_get_an_extract_before_the_deadline(
    company: Company,
) -> None:
    async def go() -> None:
        model = CountingModel()
        model.gate = asyncio.Event()
        settings = ServingSettings.model_validate(
            {"lake_uri": company.lake, "llm_concurrency": 1, "queue_limit": 1, "ask_deadline": 5}
        )
        async with AsyncRagClient(settings, model=model.model) as client:
            await client.warm()
            questions = (PER_DIEM, PARKING, "How many days of leave are there?")
            asked = [asyncio.create_task(client.ask(question)) for question in questions]
            results = await asyncio.gather(*asked, return_exceptions=True)
            answers = [result for result in results if isinstance(result, Answer)]
            assert sorted(type(result).__name__ for result in results) == ["Answer", "Answer", Overloaded.__name__]
            assert all(answer.degraded[0].startswith("model_unavailable:") for answer in answers)
            assert not any(answer.kind == "generated" for answer in answers)
            model.gate.set()
            assert (await client.ask(PER_DIEM)).kind == "generated"

    asyncio.run(go())


def test_a_missing_shard_table_raises_lake_unavailable(company: Company) -> None:
    import shutil

    with open_client(company, None) as client:
        client.ask(PER_DIEM)
        shutil.rmtree(Path(company.lake, "shards"))
        answers: list[Answer] = []
        with pytest.raises(LakeUnavailable), open_client(company, None) as other:
            answers.append(other.ask(PARKING))
    assert answers == []
