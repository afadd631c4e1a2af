"""Evidence: the passages found for a question, by identity and content hash, without their text."""

import hashlib
import json
from collections.abc import Sequence

from rag_serving.cache.evidence_record import Evidence
from rag_serving.results import Hit


def evidence_of(hits: Sequence[Hit], cited: frozenset[str] = frozenset()) -> tuple[Evidence, ...]:
    """Return the hits as evidence, in order; `cited` holds the chunk ids that the answer cites."""
    return tuple(
        Evidence(chunk_id=hit.chunk_id, content_hash=content_hash(hit), score=hit.score, cited=hit.chunk_id in cited)
        for hit in hits
    )


def content_hash(hit: Hit) -> str:
    """Return 32 hex digits over what a prompt shows of a passage, and whether it is stale."""
    shown = [hit.title, hit.heading_path, hit.text, hit.stale]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:32]


def same_evidence(left: Sequence[Evidence], right: Sequence[Evidence]) -> bool:
    """Return whether both are the same passages with the same contents, in any order."""
    return {(one.chunk_id, one.content_hash) for one in left} == {(one.chunk_id, one.content_hash) for one in right}
