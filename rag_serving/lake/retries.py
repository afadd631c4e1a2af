"""The retry policy: bounded, with exponential backoff and full jitter."""

from collections.abc import Callable

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential


def with_retries(
    is_transient: Callable[[BaseException], bool], *, tries: int, first: float = 0.1, longest: float = 1.0
) -> Retrying:
    """Return a decorator that retries a function on transient errors, then raises the last error unchanged.

    `first` and `longest` limit the pauses, in seconds.
    """
    return Retrying(
        retry=retry_if_exception(is_transient),
        stop=stop_after_attempt(tries),
        wait=wait_random_exponential(multiplier=first, max=longest),
        reraise=True,
    )
