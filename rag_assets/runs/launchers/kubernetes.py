"""Runs as Kubernetes jobs: one pod per run, with resources by the size of its shard."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
from dagster._core.launcher import LaunchRunContext
from dagster._serdes import ConfigurableClassData
from dagster_k8s import K8sRunLauncher
from dagster_k8s.job import USER_DEFINED_K8S_CONFIG_KEY

from rag_assets.runs.launchers.judged import JudgedByHeartbeat
from rag_assets.runs.tags import OBJECTS_TAG, PARTITION_TAG
from rag_assets.settings import PipelineSettings
from rag_serving.errors import RagError
from rag_serving.lake.catalog_entry import read_catalog_entry
from rag_serving.lake.object_store import open_object_store
from rag_serving.lake.shards import Shard

_SIZES = dg.Field(
    dg.Array({"objects": int, "run_k8s_config": dg.Permissive()}),  # pyright: ignore[reportUnknownArgumentType]
    is_required=False,
    default_value=[],
    description="Pods of shards of at least so many objects; the largest number that a shard reaches decides.",
)

_log = logging.getLogger(__name__)


class KubernetesRunLauncher(JudgedByHeartbeat, K8sRunLauncher):
    """dagster-k8s's launcher; a run whose node is gone is failed without waiting for Kubernetes to give it up."""

    def __init__(
        self, sizes: Sequence[Mapping[str, Any]] = (), inst_data: ConfigurableClassData | None = None, **config: Any
    ) -> None:
        self._sizes = sorted(sizes, key=lambda size: size["objects"])
        super().__init__(inst_data=inst_data, **config)

    @classmethod
    def config_type(cls) -> Any:
        """Return dagster-k8s's configuration and the sizes."""
        return {**super().config_type(), "sizes": _SIZES}

    def launch_run(self, context: LaunchRunContext) -> None:
        """Create the run's job, and add the pod's configuration for its size to the run's tags.

        A run that already has such a tag keeps it.
        """
        run = context.dagster_run
        if self._sizes and USER_DEFINED_K8S_CONFIG_KEY not in run.tags:
            objects = _objects(run)
            fitting = [size["run_k8s_config"] for size in self._sizes if size["objects"] <= objects]
            if fitting:
                tags = {USER_DEFINED_K8S_CONFIG_KEY: json.dumps(fitting[-1])}
                self._instance.add_run_tags(run.run_id, tags)
                run = run.with_tags({**run.tags, **tags})
        super().launch_run(context._replace(dagster_run=run))


def _objects(run: dg.DagsterRun) -> int:
    """Return the number of objects in the run's shard, as listed by the sensor, or else as published."""
    if OBJECTS_TAG in run.tags:
        return int(run.tags[OBJECTS_TAG])
    if PARTITION_TAG not in run.tags:
        return 0
    try:
        objects = open_object_store(PipelineSettings.from_env().lake_uri)
        found = read_catalog_entry(objects, Shard.parse(run.tags[PARTITION_TAG]))
    except RagError as error:
        _log.warning("the size of %s is unknown, its pod gets the default: %s", run.tags[PARTITION_TAG], error)
        return 0
    return 0 if found is None else found[0].current.documents + found[0].current.quarantined
