"""What the terminal shows of a run: its log level and the reason of a failure."""

from collections.abc import Sequence
from typing import Any

import dagster as dg


def quiet_logging(*, verbose: bool) -> dict[str, Any]:
    """Return run configuration that sets the level of Dagster's console log; the event log has everything."""
    return {"loggers": {"console": {"config": {"log_level": "INFO" if verbose else "CRITICAL"}}}}


def failure_reason(events: Sequence[dg.DagsterEvent]) -> str:
    """Return the reason why a run failed: the failed checks, else the first error."""
    stopped = [
        f"{check.check_name}: {check.description}"
        for event in events
        if event.event_type_value == "ASSET_CHECK_EVALUATION"
        and not (check := event.asset_check_evaluation_data).passed
        and check.severity == dg.AssetCheckSeverity.ERROR
    ]
    if stopped:  # Dagster's own message only names the check
        return "; ".join(stopped)
    for event in events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data is not None and data.user_failure_data.description:
                return data.user_failure_data.description
            if data.error is not None:
                return (data.error.cause or data.error).message.strip()
    for event in events:
        if event.is_failure:
            data = getattr(event.event_specific_data, "error", None)
            if data is not None:
                return (data.cause or data).message.strip()
            return event.message or "failed"
    return "failed; see the run in the UI"
