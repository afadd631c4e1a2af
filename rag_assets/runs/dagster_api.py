"""Dagster's GraphQL API as the commands use it, of a web server elsewhere or of this process on its own instance."""

import contextlib
import re
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from rag_assets.errors import OrchestrationError
from rag_assets.runs.instance import launcher_name
from rag_assets.runs.names import INDEX_SHARD, SHARD_ASSETS, Names
from rag_serving.lake.object_store import is_s3
from rag_serving.lake.shards import Shard

Answer = Any
"""Decoded JSON."""
Execute = Callable[[str, Mapping[str, Any]], Answer]
"""Executes a query with its variables and returns the response, with `data` and `errors`."""

_ADD_AT_ONCE = 100
_TIMEOUT = 60.0
DAEMON_SECONDS = 90.0
"""Seconds after which a daemon counts as dead: three times Dagster's interval between its heartbeats, and between its
looks for new backfills. Dagster itself tolerates half an hour."""

POD_LAUNCHERS = ("KubernetesRunLauncher", "K8sRunLauncher")
_INTERRUPTED = "DagsterExecutionInterruptedError"
_OVER = ("COMPLETED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED")
_UNFINISHED = ("QUEUED", "NOT_STARTED", "MANAGED", "STARTING", "STARTED", "CANCELING")

_LOCATIONS = """
{ workspaceOrError { __typename
  ... on Error { message }
  ... on Workspace { locationEntries { name locationOrLoadError { __typename
    ... on Error { message }
    ... on RepositoryLocation { repositories { name jobs { name } } } } } } } }
"""
_DAEMONS = "{ instance { daemonHealth { allDaemonStatuses { daemonType healthy lastHeartbeatTime } } } }"
_LAUNCHER = "{ instance { runLauncher { name } } }"
_LAUNCH = """
mutation ($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) { __typename
  ... on LaunchBackfillSuccess { backfillId }
  ... on Error { message } } }
"""
_BACKFILL = """
query ($id: String!) { partitionBackfillOrError(backfillId: $id) { __typename
  ... on Error { message }
  ... on PartitionBackfill { status numPartitions error { message }
    partitionStatuses { results { partitionName runStatus runId } } } } }
"""
_FAILED = """
query ($asset: AssetKeyInput!) { assetNodeOrError(assetKey: $asset) {
  ... on AssetNode { assetPartitionStatuses {
    ... on DefaultPartitionStatuses { failedPartitions } } } } }
"""
_EVENTS = """
query ($id: ID!, $after: String) { runOrError(runId: $id) {
  ... on Run { eventConnection(afterCursor: $after) { cursor hasMore events { __typename
    ... on AssetCheckEvaluationEvent { evaluation { checkName description severity success } }
    ... on ExecutionStepFailureEvent { error { ...Shown } failureMetadata { description } }
    ... on RunFailureEvent { message error { ...Shown } } } } } } }
fragment Shown on PythonError { message cause { message } }
"""


@dataclass(frozen=True)
class Progress:
    """The state of a backfill."""

    total: int
    requested: int
    """Shards with a run, in whatever state."""
    succeeded: int
    failed: Mapping[str, str]
    """Ids of the runs that failed, by the keys of their shards."""
    terminated: Sequence[str]
    """Keys of the shards whose run a user terminated."""
    unfinished: int
    """Shards whose run was not requested yet, waits or works."""
    status: str
    error: str | None
    """Why the daemon could not continue the backfill."""

    @property
    def over(self) -> bool:
        """Whether the daemon is done with the backfill and no run is left."""
        return self.status in _OVER and (self.unfinished == 0 or self.status != "COMPLETED")


class DagsterApi:
    """The API, bound to the code location that holds the pipeline."""

    def __init__(self, execute: Execute, names: Names, location: str | None, *, launcher: str | None = None) -> None:
        """Find the location that defines the job, or the one that is named; raise `OrchestrationError` if none does.

        `launcher` is the class name of the run launcher, if it is known.
        """
        self._execute = execute
        self._launcher = launcher
        self._names = names
        self._job = names.job(INDEX_SHARD)
        self.location, repository = self._find(location)
        self._repository = {"repositoryLocationName": self.location, "repositoryName": repository}

    def _ask(self, query: str, **variables: Any) -> Answer:
        answer = self._execute(query, variables)
        if errors := answer.get("errors"):
            raise OrchestrationError(f"Dagster refused a query: {_first_line(str(errors[0].get('message')))}")
        return answer["data"]

    def _find(self, wanted: str | None) -> tuple[str, str]:
        workspace = self._ask(_LOCATIONS)["workspaceOrError"]
        if workspace["__typename"] != "Workspace":
            raise OrchestrationError(f"Dagster's workspace does not load: {_first_line(workspace['message'])}")
        matching: dict[str, str] = {}
        others: list[str] = []
        for entry in workspace["locationEntries"]:
            loaded = entry["locationOrLoadError"]
            if loaded is None:
                others.append(f"{entry['name']} (is still loading)")
                continue
            if loaded["__typename"] != "RepositoryLocation":
                others.append(f"{entry['name']} (does not load: {_first_line(loaded['message'])})")
                continue
            for repository in loaded["repositories"]:
                if any(job["name"] == self._job for job in repository["jobs"]):
                    matching[entry["name"]] = repository["name"]
            if entry["name"] not in matching:
                others.append(f"{entry['name']} (has no job {self._job})")
        if wanted is not None and wanted in matching:
            return wanted, matching[wanted]
        if wanted is None and len(matching) == 1:
            return next(iter(matching.items()))
        found = ", ".join([*sorted(matching), *sorted(others)]) or "none"
        if wanted is not None:
            raise OrchestrationError(f"Dagster has no code location {wanted} with the job {self._job}; it has: {found}")
        raise OrchestrationError(
            f"{'several code locations have' if matching else 'no code location has'} the job {self._job}: choose one "
            f"with --location or RAG_CODE_LOCATION; Dagster has: {found}"
        )

    def require_daemon(self) -> None:
        """Raise `OrchestrationError` unless a daemon that launches backfills and runs sent a recent heartbeat."""
        health = self._ask(_DAEMONS)["instance"]["daemonHealth"]
        silent: list[str] = []
        for status in health["allDaemonStatuses"]:
            if status["daemonType"] not in ("BACKFILL", "QUEUED_RUN_COORDINATOR"):
                continue
            beat: float | None = status["lastHeartbeatTime"]
            seconds = 0.0 if beat is None else time.time() - beat
            if not status["healthy"] or seconds > DAEMON_SECONDS:
                age = "no heartbeat" if beat is None else f"last heartbeat {seconds:.0f} seconds ago"
                silent.append(f"{status['daemonType'].lower()}: {age}")
        if silent:
            raise OrchestrationError(
                f"no Dagster daemon is running ({', '.join(silent)}). Start one with 'make dev', "
                "'dg dev' or 'dagster-daemon run -w workspace.yaml' and the same DAGSTER_HOME, or index in this "
                "process with --here"
            )

    def require_shared_lake(self, lake_uri: str) -> None:
        """Raise `OrchestrationError` if runs execute in pods and the lake is a folder, which they cannot share."""
        launcher = self._launcher
        if launcher is None:  # lenient: Dagster+ has no launcher
            answer: Answer = self._execute(_LAUNCHER, {}).get("data")
            found: Answer = None if answer is None else answer["instance"]["runLauncher"]
            launcher = None if found is None else found["name"]
        if launcher in POD_LAUNCHERS and not is_s3(lake_uri):
            raise OrchestrationError(
                f"runs execute in Kubernetes pods, which cannot reach the lake in the folder {lake_uri}: set "
                "RAG_LAKE_URI to s3://bucket/prefix"
            )

    def add_shards(self, shards: Sequence[Shard]) -> None:
        """Add a partition for each shard that has none."""
        for start in range(0, len(shards), _ADD_AT_ONCE):
            batch = shards[start : start + _ADD_AT_ONCE]
            fields = "\n".join(
                f"p{at}: addDynamicPartition(repositorySelector: $repository, partitionsDefName: $set, "
                f"partitionKey: $k{at}) {{ __typename ... on Error {{ message }} }}"
                for at in range(len(batch))
            )
            keys = {f"k{at}": shard.key for at, shard in enumerate(batch)}
            declared = " ".join(f"${name}: String!" for name in keys)
            added = self._ask(
                f"mutation ($repository: RepositorySelector!, $set: String! {declared}) {{ {fields} }}",
                repository=self._repository,
                set=self._names.partition_set,
                **keys,
            )
            for result in added.values():
                if result["__typename"] not in ("AddDynamicPartitionSuccess", "DuplicateDynamicPartitionError"):
                    raise OrchestrationError(f"Dagster refused a partition: {result.get('message', result)}")

    def failed_shards(self) -> set[Shard]:
        """Return the shards whose latest run failed before it published."""
        failed: set[Shard] = set()
        for asset in SHARD_ASSETS:
            node = self._ask(_FAILED, asset={"path": list(self._names.asset(asset).path)})["assetNodeOrError"]
            statuses: Answer = node.get("assetPartitionStatuses")
            if statuses is not None:
                failed |= {Shard.parse(key) for key in statuses["failedPartitions"]}
        return failed

    def launch(self, shards: Sequence[Shard], tags: Mapping[str, str]) -> str:
        """Start a backfill of `index_shard` over those shards in the daemon, and return its id.

        The daemon retries crashed runs; `dagster job backfill` would submit the runs and exit.
        """
        params = {
            "selector": {"partitionSetName": f"{self._job}_partition_set", "repositorySelector": self._repository},
            "partitionNames": [shard.key for shard in shards],
            "tags": [{"key": key, "value": value} for key, value in tags.items()],
            "title": "rag-assets backfill",
        }
        result = self._ask(_LAUNCH, params=params)["launchPartitionBackfill"]
        if result["__typename"] != "LaunchBackfillSuccess":
            raise OrchestrationError(f"Dagster refused the backfill: {result.get('message') or result}")
        return result["backfillId"]

    def progress(self, backfill_id: str) -> Progress:
        """Return the state of a backfill; raise `OrchestrationError` if it no longer exists."""
        backfill = self._ask(_BACKFILL, id=backfill_id)["partitionBackfillOrError"]
        if backfill["__typename"] != "PartitionBackfill":
            raise OrchestrationError(f"backfill {backfill_id} no longer exists in this Dagster instance")
        statuses = backfill["partitionStatuses"]
        runs: Answer = [] if statuses is None else statuses["results"]
        failed = {run["partitionName"]: run["runId"] for run in runs if run["runStatus"] == "FAILURE"}
        error = backfill["error"]
        return Progress(
            total=backfill["numPartitions"] or len(runs),
            requested=sum(run["runStatus"] is not None for run in runs),
            succeeded=sum(run["runStatus"] == "SUCCESS" for run in runs),
            failed=failed,
            terminated=sorted(run["partitionName"] for run in runs if run["runStatus"] == "CANCELED"),
            unfinished=sum(run["runStatus"] in (None, *_UNFINISHED) for run in runs),
            status=backfill["status"],
            error=None if error is None else _first_line(error["message"]),
        )

    def failure_reason(self, run_id: str) -> str:
        """Return the reason why a run failed: the failed checks, else the first error."""
        after, checks, errors = None, list[str](), list[str]()
        while True:
            events = self._ask(_EVENTS, id=run_id, after=after)["runOrError"].get("eventConnection")
            if events is None:
                return "its run no longer exists"
            for event in events["events"]:
                if (found := event.get("evaluation")) and not found["success"] and found["severity"] == "ERROR":
                    checks.append(f"{found['checkName']}: {found['description']}")
                elif event["__typename"] in ("ExecutionStepFailureEvent", "RunFailureEvent"):
                    errors.append(_shown(event))
            after = events["cursor"]
            if not events["hasMore"]:
                return "; ".join(checks) or next(iter(errors), "failed; see the run in the UI")


def _first_line(message: str) -> str:
    return message.strip().partition("\n")[0]


def _shown(event: Answer) -> str:
    metadata, error = event.get("failureMetadata"), event.get("error")
    if metadata is not None and metadata["description"]:
        return metadata["description"]
    if error is not None:
        message = (error["cause"] or error)["message"].strip()
        return "its process was stopped; the next run continues from there" if _INTERRUPTED in message else message
    return event.get("message") or "failed"


@contextlib.contextmanager
def local_api(instance: dg.DagsterInstance, names: Names, location: str | None) -> Generator[DagsterApi]:
    """Yield the API on the instance in this process.

    The code location is the one of workspace.yaml in DAGSTER_HOME, or in the working directory, that has the pipeline;
    without such a file, this installation's definitions under the given name, which the daemon must know.
    """
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import ModuleTarget, WorkspaceFileTarget
    from dagster_graphql.cli import execute_query

    folders = [Path(instance.root_directory), Path.cwd()] if instance.is_persistent else [Path.cwd()]
    found = next((path for folder in folders if (path := folder / "workspace.yaml").is_file()), None)
    if found is None:
        location = location or "rag_assets"
        target: Any = ModuleTarget("rag_assets.definitions", None, None, location)
    else:
        target = WorkspaceFileTarget([str(found)])
    with WorkspaceProcessContext(instance, target, code_server_log_level="ERROR") as workspace:

        def execute(query: str, variables: Mapping[str, Any]) -> Answer:
            return execute_query(workspace, query, variables)

        yield DagsterApi(execute, names, location, launcher=launcher_name(instance))


def remote_api(url: str, token: str | None, names: Names, location: str | None) -> DagsterApi:
    """Return the API of the web server at that URL, with a Dagster+ token if it needs one."""
    import requests

    if not url.startswith(("http://", "https://")):
        raise OrchestrationError("RAG_DAGSTER_URL must begin with http:// or https://")

    endpoint = re.sub(r"/+(graphql/*)?$", "", url) + "/graphql"
    headers = {} if token is None else {"Dagster-Cloud-Api-Token": token}

    def execute(query: str, variables: Mapping[str, Any]) -> Answer:
        try:
            response = requests.post(
                endpoint, json={"query": query, "variables": variables}, headers=headers, timeout=_TIMEOUT
            )
        except requests.RequestException as error:
            raise OrchestrationError(
                f"Dagster does not answer at {url} ({type(error).__name__}); check RAG_DAGSTER_URL"
            ) from error
        if response.status_code in (401, 403):
            raise OrchestrationError(f"Dagster at {url} refused the token; check RAG_DAGSTER_TOKEN")
        try:
            return response.json()
        except ValueError as error:
            raise OrchestrationError(
                f"{url} is not a Dagster web server (it answered HTTP {response.status_code}); check RAG_DAGSTER_URL"
            ) from error

    return DagsterApi(execute, names, location)
