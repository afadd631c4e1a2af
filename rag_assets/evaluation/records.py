"""The record of a shard's evaluations in the lake."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from rag_assets.evaluation.metrics import Retrieval
from rag_assets.storage.lake import Lake
from rag_serving.errors import WriteConflict
from rag_serving.lake.object_store import ABSENT, StoredObject
from rag_serving.lake.retries import with_retries
from rag_serving.lake.shards import Shard

EVALUATIONS = "evaluations"
KEPT = 50
_PUTS = 10


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The measurements of one version of a shard's table."""

    at: datetime
    run_id: str
    version: int
    fingerprint: str
    compared_with: int | None = None
    """The version that was published at the time; None if there was none, or it was this one."""
    questions: int = 0
    """Golden questions asked."""
    gone: int = 0
    """Golden questions skipped because their documents are no longer in the source."""
    invalid: int = 0
    known_items: int = 0
    """Questions asked about documents of the shard by title, file name or code."""
    known_items_missed: tuple[str, ...] = ()
    head: Retrieval | None = None
    published: Retrieval | None = None
    index: str = ""
    """See `MeasuredIndex`."""
    index_recall: float | None = None


class Record(BaseModel):
    """The object of a shard in the lake (``evaluations/<table>.json``)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = 1
    vectors_sampled: int = 0
    """Version of the table whose sampled vectors last matched their texts."""
    evaluations: tuple[Evaluation, ...] = ()
    """Newest first."""


def read_record(lake: Lake, shard: Shard) -> Record:
    """Return the shard's record; an unreadable record counts as empty."""
    return _parsed(lake.objects.get(_key(shard)))


def replace_evaluations(record: Record, newest: Evaluation) -> Record:
    """Return the record with a new evaluation and without the oldest ones."""
    return record.model_copy(update={"evaluations": (newest, *record.evaluations)[:KEPT]})


def update_record(lake: Lake, shard: Shard, change: Callable[[Record], Record]) -> Record:
    """Change the shard's record without losing a concurrent change; raise `WriteConflict` after some retries."""
    key = _key(shard)

    def put() -> Record:
        found = lake.objects.get(key)
        record = change(_parsed(found))
        expect = ABSENT if found is None else found.etag
        lake.objects.put(key, record.model_dump_json(indent=1).encode(), expect=expect)
        return record

    return with_retries(lambda error: isinstance(error, WriteConflict), tries=_PUTS, first=0.01)(put)


def _key(shard: Shard) -> str:
    return f"{EVALUATIONS}/{shard.table_name}.json"


def _parsed(stored: StoredObject | None) -> Record:
    try:
        return Record() if stored is None else Record.model_validate_json(stored.data)
    except ValidationError:
        return Record()
