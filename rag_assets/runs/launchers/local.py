"""Runs as processes of the code location's machine."""

from dagster import DefaultRunLauncher

from rag_assets.runs.launchers.judged import JudgedByHeartbeat


class LocalRunLauncher(JudgedByHeartbeat, DefaultRunLauncher):
    """Dagster's default launcher, with a health check."""
