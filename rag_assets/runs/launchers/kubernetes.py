"""Runs as Kubernetes jobs: one pod per run."""

from dagster_k8s import K8sRunLauncher

from rag_assets.runs.launchers.judged import JudgedByHeartbeat


class KubernetesRunLauncher(JudgedByHeartbeat, K8sRunLauncher):
    """dagster-k8s's launcher; a run whose node is gone is failed without waiting for Kubernetes to give it up."""
