"""The protocol of event feeds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Delivery:
    """The messages of one poll, and the feed's position after them."""

    bodies: tuple[bytes | str | None, ...]
    position: Mapping[str, Any]
    """Plain JSON. Must be stored together with the content of the messages, and passed to the next `poll`."""
    gap: str = ""
    """Describes messages that expired unread: any document may have changed. Empty if there are none."""
    note: str = ""
    """For the log."""


class Feed(Protocol):
    """A source of messages that name objects. Only `poll` connects to a server."""

    @property
    def name(self) -> str:
        """The feed's value of `RAG_ARRIVALS`."""
        ...

    def poll(self, position: Mapping[str, Any], *, seconds: float) -> Delivery:
        """Return the messages after `position` (empty at first), in about `seconds` at most.

        The caller has stored this position, so the feed may delete the messages before it. Raises `FeedUnavailable`,
        and `SettingsError` if a setting is missing.
        """
        ...
