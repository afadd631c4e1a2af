"""The sensor over an event feed, evaluated on its own instance. The document store is never contacted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.sensor_definition import SensorExecutionData
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin

from rag_assets.arrivals.events.base import Delivery
from rag_assets.arrivals.pending import RETRY_SECONDS
from rag_assets.defs.build import build_definitions
from rag_assets.errors import FeedUnavailable
from rag_assets.runs.names import Names
from rag_assets.runs.status import ACTIVE
from rag_assets.settings import PipelineSettings
from rag_serving.errors import SettingsError
from rag_serving.lake.shards import Shard
from tests.pipelines import settings_for

LOCATION = RegisteredCodeLocationOrigin("rag_assets")
JOB = "index_shard"


@dataclass
class FakeFeed:
    """A feed that returns one given delivery per tick and records the positions it was polled with."""

    deliveries: list[Delivery | Exception] = field(default_factory=list)
    positions: list[dict[str, Any]] = field(default_factory=list)
    name: str = "sqs"

    def poll(self, position: Mapping[str, Any], *, seconds: float) -> Delivery:
        self.positions.append(dict(position))
        delivery = self.deliveries.pop(0) if self.deliveries else Delivery((), {})
        if isinstance(delivery, Exception):
            raise delivery
        return delivery

    def bring(self, *keys: str, position: Mapping[str, Any] | None = None, gap: str = "") -> None:
        """Add a delivery with one message per key, in S3's format."""
        self.deliveries.append(Delivery(tuple(map(event, keys)), position or {}, gap))


def event(key: str, bucket: str = "docs") -> str:
    return json.dumps({"Records": [{"s3": {"bucket": {"name": bucket}, "object": {"key": f"incoming/{key}"}}}]})


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance on disk: sensors reopen it by reference, which an in-memory instance does not have."""
    home = tmp_path / "dagster-home"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as local:
        yield local


@dataclass
class Bench:
    """A feed, and the sensor that reads it on every tick."""

    instance: dg.DagsterInstance
    settings: PipelineSettings
    feed: FakeFeed = field(default_factory=FakeFeed)
    cursor: str | None = None

    def definitions(self) -> dg.Definitions:
        return build_definitions(self.settings, {"arrivals_feed": self.feed})

    def tick(self) -> SensorExecutionData:
        """Evaluate the sensor like the daemon: store cursor and partitions unless it raises."""
        definitions = self.definitions()
        resources = definitions.resources or {}
        with dg.build_sensor_context(
            instance=self.instance,
            instance_ref=self.instance.get_ref(),
            cursor=self.cursor,
            definitions=definitions,
            resources={name: resources[name] for name in ("pipeline", "arrivals_feed")},
        ) as context:
            found = definitions.resolve_sensor_def("s3_arrivals").evaluate_tick(context)
        for request in found.dynamic_partitions_requests or ():
            self.instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
        self.cursor = found.cursor
        return found

    def run(self, request: dg.RunRequest, status: dg.DagsterRunStatus, tags: Mapping[str, str] | None = None) -> None:
        """Create the requested run with the tags that Dagster sets."""
        key = request.partition_key or ""
        self.instance.create_run_for_job(
            self.definitions().resolve_job_def(JOB),
            tags={"dagster/partition": key, "dagster/run_key": request.run_key or "", **(tags or {})},
            status=status,
            remote_job_origin=RemoteJobOrigin(RemoteRepositoryOrigin(LOCATION, "__repository__"), JOB),
        )

    def later(self, seconds: float) -> None:
        """Let time pass by moving the times of requested runs back."""
        cursor = json.loads(self.cursor or "")
        for hint in cursor["hints"].values():
            if "asked" in hint:
                hint["asked"][1] -= seconds
        self.cursor = json.dumps(cursor)


@pytest.fixture
def bench(instance: dg.DagsterInstance, tmp_path: Path) -> Bench:
    return Bench(instance, settings_for("s3://docs/incoming", str(tmp_path / "lake"), arrivals="sqs"))


def requested(found: SensorExecutionData) -> dict[str, Sequence[str] | None]:
    """Return the requested documents by shard; None for a whole shard."""
    return {request.partition_key or "": keys_of(request) for request in found.run_requests or ()}


def keys_of(request: dg.RunRequest) -> list[str] | None:
    return request.run_config["ops"]["raw_documents"]["config"]["keys"] if request.run_config else None


def test_named_documents_become_one_run_per_shard_with_exactly_their_keys(bench: Bench) -> None:
    bench.feed.bring("Malmö/it & web/a b.md", "Oslo/people/x.md", "Oslo/people/w.md", "Oslo/people/x.md")
    found = bench.tick()
    assert requested(found) == {
        "Malmö/it & web": ["Malmö/it & web/a b.md"],
        "Oslo/people": ["Oslo/people/w.md", "Oslo/people/x.md"],
    }
    assert sorted(bench.instance.get_dynamic_partitions("shard")) == ["Malmö/it & web", "Oslo/people"]
    job = bench.definitions().resolve_job_def("index_shard")
    for request in found.run_requests or ():
        assert dg.validate_run_config(job, dict(request.run_config))["ops"]["raw_documents"]["config"]["keys"]


def test_a_requested_shard_is_recorded_as_an_observation_of_its_source(bench: Bench) -> None:
    bench.feed.bring("Oslo/people/x.md", "Oslo/people/w.md")
    (event,) = bench.tick().asset_events
    assert isinstance(event, dg.AssetObservation)
    assert (event.asset_key.to_user_string(), event.partition) == ("source_objects", "Oslo/people")
    assert event.metadata["named_objects"].value == 2


def test_irrelevant_messages_are_counted_and_request_no_run(bench: Bench) -> None:
    bodies = (event("Oslo/people/x.md", "another"), "?", '{"Event": "s3:TestEvent"}', event("loose.md"), None)
    bench.feed.deliveries.append(
        Delivery(bodies, {}, note="2 messages could not be deleted and will be delivered again")
    )
    found = bench.tick()
    assert requested(found) == {}
    assert found.skip_message == (
        "5 messages named 0 objects (3 foreign, 1 test, 1 of keys outside region/department/); "
        "0 shards requested, 0 waiting; 2 messages could not be deleted and will be delivered again"
    )


def test_the_feed_continues_from_the_stored_position(bench: Bench) -> None:
    bench.feed.bring(position={"handles": ["one"]})
    bench.feed.bring(position={"handles": ["two"]})
    for _ in range(3):
        bench.tick()
    assert bench.feed.positions == [{}, {"handles": ["one"]}, {"handles": ["two"]}]


def test_a_failed_tick_leaves_position_and_hints_unchanged(bench: Bench) -> None:
    bench.feed.bring("Oslo/people/x.md", position={"handles": ["one"]})
    bench.tick()
    before = bench.cursor
    bench.feed.deliveries.append(FeedUnavailable("the queue does not answer"))
    with pytest.raises(FeedUnavailable, match="does not answer"):
        bench.tick()
    assert bench.cursor == before
    bench.tick()
    assert bench.feed.positions[-1] == {"handles": ["one"]}


def test_a_repeated_message_requests_another_run_with_a_new_run_key(bench: Bench) -> None:
    bench.feed.bring("Oslo/people/x.md")
    (first,) = bench.tick().run_requests or ()
    bench.feed.bring("Oslo/people/x.md")
    bench.run(first, dg.DagsterRunStatus.SUCCESS)
    (second,) = bench.tick().run_requests or ()
    assert keys_of(second) == ["Oslo/people/x.md"]
    assert first.run_key != second.run_key  # Dagster starts only one run per run key
    bench.run(second, dg.DagsterRunStatus.SUCCESS)
    assert requested(bench.tick()) == {}
    assert json.loads(bench.cursor or "")["hints"] == {}


@pytest.mark.parametrize("status", ACTIVE)
def test_a_shard_with_a_queued_or_running_run_is_skipped(bench: Bench, status: dg.DagsterRunStatus) -> None:
    bench.run(dg.RunRequest(run_key="of the schedule", partition_key="Oslo/people"), status)
    bench.feed.bring("Oslo/people/x.md", "Oslo/it/x.md")
    found = bench.tick()
    assert requested(found) == {"Oslo/it": ["Oslo/it/x.md"]}
    assert "Oslo/people" in json.loads(found.cursor or "")["hints"]


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED, None])
def test_a_run_that_failed_or_never_started_is_requested_again_for_the_whole_shard(
    bench: Bench, status: dg.DagsterRunStatus | None
) -> None:
    bench.feed.bring("Oslo/people/x.md")
    (first,) = bench.tick().run_requests or ()
    if status is not None:
        bench.run(first, status)
    assert bench.tick().skip_message == "0 messages named 0 objects; 0 shards requested, 1 waiting"
    bench.later(RETRY_SECONDS)
    (second,) = bench.tick().run_requests or ()
    assert keys_of(second) is None
    assert second.run_key != first.run_key


def test_a_failed_run_is_not_requested_again_if_the_daemons_retry_succeeds(bench: Bench) -> None:
    bench.feed.bring("Oslo/people/x.md")
    (request,) = bench.tick().run_requests or ()
    bench.run(request, dg.DagsterRunStatus.FAILURE)
    bench.run(request, dg.DagsterRunStatus.SUCCESS, tags={"dagster/retry_number": "1"})  # a retry keeps the run key
    bench.later(10 * RETRY_SECONDS)
    assert requested(bench.tick()) == {}


def test_a_different_run_of_the_shard_does_not_clear_its_hint(bench: Bench) -> None:
    bench.feed.bring("Oslo/people/x.md")
    (request,) = bench.tick().run_requests or ()
    bench.run(request, dg.DagsterRunStatus.FAILURE)
    other = dg.RunRequest(run_key="of other objects", partition_key="Oslo/people")
    bench.run(other, dg.DagsterRunStatus.SUCCESS)
    bench.later(RETRY_SECONDS)
    assert requested(bench.tick()) == {"Oslo/people": None}


def test_a_gap_in_the_feed_requests_a_listing_of_every_known_shard(bench: Bench) -> None:
    Names().add_shards(bench.instance, [Shard("Oslo", "people"), Shard("Oslo", "it")])
    bench.instance.add_dynamic_partitions("shard", ["made by hand"])
    bench.feed.bring("Bergen/it/x.md", gap="messages of events [0] were gone before they were read")
    assert requested(bench.tick()) == {"Oslo/people": None, "Oslo/it": None, "Bergen/it": ["Bergen/it/x.md"]}


def test_a_tick_requests_at_most_max_runs_and_the_next_one_continues(bench: Bench) -> None:
    bench.settings = bench.settings.model_copy(update={"arrivals_max_runs": 2})
    bench.feed.bring(*(f"Oslo/{number}/x.md" for number in range(5)))
    assert [len(requested(bench.tick())) for _ in range(4)] == [2, 2, 1, 0]


def test_a_tick_repeated_after_a_crash_does_not_reuse_the_lost_run_key(bench: Bench) -> None:
    bench.feed.bring("Oslo/people/x.md")
    (lost,) = bench.tick().run_requests or ()
    bench.cursor = None  # Dagster started the run and died before storing the cursor
    bench.run(lost, dg.DagsterRunStatus.SUCCESS)
    bench.feed.bring("Oslo/people/x.md", "Oslo/people/later.md")
    (again,) = bench.tick().run_requests or ()
    assert again.run_key != lost.run_key
    assert keys_of(again) == ["Oslo/people/later.md", "Oslo/people/x.md"]


def test_an_unreadable_cursor_starts_from_the_beginning(bench: Bench) -> None:
    bench.cursor = "from another version"
    bench.feed.bring("Oslo/people/x.md")
    assert requested(bench.tick()) == {"Oslo/people": ["Oslo/people/x.md"]}
    assert bench.feed.positions == [{}]


@pytest.mark.parametrize("arrivals", ["sqs", "kafka"])
@pytest.mark.parametrize("source", ["/srv/documents", None])
def test_the_error_for_a_feed_over_a_folder_says_which_settings_to_change(
    bench: Bench, tmp_path: Path, arrivals: str, source: str | None
) -> None:
    values = {"lake_uri": str(tmp_path), "arrivals": arrivals, "source_uri": source}
    bench.settings = PipelineSettings.model_validate(values)
    with pytest.raises(SettingsError, match=r"RAG_SOURCE_URI to s3://bucket/prefix, or use RAG_ARRIVALS=listing"):
        bench.tick()
    assert bench.feed.positions == []


@pytest.mark.parametrize("arrivals", ["listing", "sqs", "kafka"])
def test_the_sensor_has_the_same_name_for_every_feed_and_loads_without_its_settings(arrivals: str) -> None:
    definitions = build_definitions(PipelineSettings.model_validate({"arrivals": arrivals}))
    (sensor,) = (each for each in definitions.get_repository_def().sensor_defs if each.job_name == "index_shard")
    assert sensor.name == "s3_arrivals"
    assert ("arrivals_feed" in (definitions.resources or {})) == (arrivals != "listing")
