"""The sensor's cursor of an event feed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rag_assets.arrivals.pending import Pending, PendingShard, from_json, to_json
from rag_serving.lake.shards import Shard


@dataclass(frozen=True, slots=True)
class FeedCursor:
    """The pending shards and the feed's position, stored together so that no message is lost."""

    feed: str
    position: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Offsets, or handles of messages to delete."""
    pending: Pending = field(default_factory=dict[Shard, PendingShard])

    def dumps(self) -> str:
        """Return the cursor as JSON."""
        return json.dumps(
            {"format": 1, "feed": self.feed, "position": dict(self.position), "hints": to_json(self.pending)},
            ensure_ascii=False,
            separators=(",", ":"),
        )

    @classmethod
    def loads(cls, text: str | None, feed: str) -> "FeedCursor":
        """Parse a cursor. An unreadable one starts empty; another feed's keeps its shards but not its position."""
        if not text:
            return cls(feed)
        try:
            data = json.loads(text)
            if data["format"] != 1:
                return cls(feed)
            position: dict[str, Any] = dict(data["position"]) if data["feed"] == feed else {}
            return cls(feed, position, from_json(data["hints"]))
        except (ValueError, LookupError, TypeError, RecursionError):
            return cls(feed)
