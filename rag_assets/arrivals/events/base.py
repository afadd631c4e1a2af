"""The feed protocol and what a feed delivers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Delivery:
    """What a feed brought, and where it then was."""

    bodies: tuple[bytes | str | None, ...]
    position: Mapping[str, Any]
    """Plain JSON. To be kept together with what the bodies said, and handed to the next `poll`."""
    gap: str = ""
    """Says what happened where messages were gone before they were read: any document may have changed."""
    note: str = ""
    """For the operator."""


class Feed(Protocol):
    """Messages that name objects. Built without any contact; only `poll` speaks to a server."""

    @property
    def name(self) -> str:
        """Which feed this is, as `RAG_ARRIVALS` names it."""
        ...

    def poll(self, position: Mapping[str, Any], *, seconds: float) -> Delivery:
        """Messages after `position` (empty at first), for about `seconds` at most.

        The caller has stored this position, so the feed may delete the messages before it. Raises
        `FeedUnavailable`, and `SettingsError` for what is missing.
        """
        ...
