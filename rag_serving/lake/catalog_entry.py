"""Catalog entries: which version of a shard is published, its history and holds."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rag_serving.errors import InvalidShardName, LakeCorrupt, first_problem
from rag_serving.lake.object_store import ObjectStore
from rag_serving.lake.shards import Shard
from rag_serving.results import ShardInfo

CATALOG = "catalog"
HISTORY_LENGTH = 50


class Publication(BaseModel):
    """One published version of a shard's table."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = Field(ge=1, description="version of the Lance table")
    content_digest: str = Field(min_length=8, description="changes exactly when the chunks or their vectors' model do")
    source_digest: str = Field(description="the listing (keys, etags, sizes) that this version was made from")
    fingerprint: str = Field(min_length=8, description="embedder of the vectors")
    documents: int = Field(ge=0)
    chunks: int = Field(ge=0)
    quarantined: int = Field(ge=0)
    published_at: datetime
    run_id: str = Field(description="Dagster run that built it")
    published_by: str = Field("", description="who made it current: a run, or the person who rolled back to it")
    table_format: int = Field(1, ge=1, description="version of the table's schema, see `tables.TABLE_FORMAT`")


class Hold(BaseModel):
    """Why a shard stays at its version: runs go on building, publishing waits for the release."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    by: str
    since: datetime
    built_source_digest: str = Field("", description="the listing that the newest unpublished version was made from")


class CatalogEntry(BaseModel):
    """The catalog object of one shard: what serving reads now, and what it read before."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = Field(1, ge=1, le=1)
    region: str
    department: str
    table: str
    epoch: int = Field(ge=0, description="lease epoch of the writer that published")
    current: Publication
    history: tuple[Publication, ...] = Field((), max_length=HISTORY_LENGTH, description="newest first, without current")
    hold: Hold | None = None

    @property
    def shard(self) -> Shard:
        return Shard(self.region, self.department)

    @property
    def info(self) -> ShardInfo:
        """What clients are told of it."""
        current = self.current
        return ShardInfo(
            region=self.region,
            department=self.department,
            documents=current.documents,
            chunks=current.chunks,
            quarantined=current.quarantined,
            version=current.version,
            published_at=current.published_at,
        )

    @property
    def latest_built_source_digest(self) -> str:
        """The listing that the pipeline has worked through: of what is published, or of what a hold keeps back."""
        return (self.hold.built_source_digest if self.hold is not None else "") or self.current.source_digest

    def to_json(self) -> bytes:
        return self.model_dump_json(indent=1).encode()


def catalog_key(shard: Shard) -> str:
    """Key of a shard's catalog object."""
    return f"{CATALOG}/{shard.table_name}.json"


def shard_of_key(key: str) -> Shard | None:
    """The shard of a catalog object; None for an object that no pipeline wrote."""
    try:
        return Shard.from_table_name(table_of_key(key))
    except InvalidShardName:
        return None


def table_of_key(key: str) -> str:
    return key.removeprefix(f"{CATALOG}/").removesuffix(".json")


def read_entry(shard: Shard, data: bytes) -> CatalogEntry:
    """Validate a catalog object; raises `LakeCorrupt`."""
    try:
        entry = CatalogEntry.model_validate_json(data)
        if entry.shard != shard or entry.table != shard.table_name:
            raise LakeCorrupt(f"the catalog object of {shard} speaks of {entry.table!r}; publish the shard again")
    except (ValidationError, InvalidShardName) as error:
        problem = first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise LakeCorrupt(f"the catalog object of {shard} is malformed ({problem}); publish it again") from error
    return entry


def read_catalog_entry(objects: ObjectStore, shard: Shard) -> tuple[CatalogEntry, str] | None:
    """One shard's entry and its etag, straight from the lake; None before its first publish."""
    stored = objects.get(catalog_key(shard))
    return None if stored is None else (read_entry(shard, stored.data), stored.etag)
