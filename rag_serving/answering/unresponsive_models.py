"""Which language models do not respond at present, so that no question waits for them."""

import logging
import time
from collections import Counter
from collections.abc import Callable

from rag_serving.litellm_calls import ModelError

_log = logging.getLogger(__name__)


class UnresponsiveModels:
    """Bypasses a model that was unreachable or silent `failures` times in a row.

    Every `pause` seconds one call tries it, and the model is used again once it responds. Errors that a model returns
    do not count, because they come quickly and may be due to the question.
    """

    def __init__(self, *, failures: int = 5, pause: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_failures = failures
        self._pause = pause
        self._clock = clock
        self._failures: Counter[str] = Counter()
        self._next_try: dict[str, float] = {}

    def __len__(self) -> int:
        """Return how many models are bypassed."""
        return len(self._next_try)

    def bypasses(self, model: str) -> bool:
        """Return whether to skip the model now. After each pause, False is returned once, so that one call tries it."""
        next_try = self._next_try.get(model)
        if next_try is None:
            return False
        if self._clock() < next_try:
            return True
        self._next_try[model] = self._clock() + self._pause
        return False

    def failed(self, model: str, error: Exception) -> None:
        """Record a failed call."""
        if not _is_unresponsive(error):
            self.responded(model)
            return
        self._failures[model] += 1
        if self._failures[model] < self._most_failures:
            return
        if model not in self._next_try:
            _log.warning(
                "language model %s did not respond %d times in a row; bypassing it, with a try every %g seconds",
                model,
                self._failures[model],
                self._pause,
            )
        self._next_try[model] = self._clock() + self._pause

    def responded(self, model: str) -> None:
        """Record a call to which the model responded."""
        self._failures.pop(model, None)
        if self._next_try.pop(model, None) is not None:
            _log.info("language model %s responds again", model)


def _is_unresponsive(error: Exception) -> bool:
    if not isinstance(error, ModelError):
        return isinstance(error, TimeoutError)
    # litellm reports a refused connection as an internal error of the provider.
    return error.name in _UNRESPONSIVE or "connection error" in error.message.casefold()


_UNRESPONSIVE = {"Timeout", "APIConnectionError", "ConnectionError", "TimeoutError"}
