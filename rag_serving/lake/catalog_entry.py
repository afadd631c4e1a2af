"""Catalog entries: the published version of a shard, its history and its hold."""

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from rag_serving.errors import InvalidShardName, LakeCorrupt, first_problem
from rag_serving.lake.field_types import Count, Digest, Epoch, Fingerprint, Language, TableVersion
from rag_serving.lake.object_store import ObjectStore
from rag_serving.lake.shards import Shard
from rag_serving.results import ShardInfo

CATALOG = "catalog"
HISTORY_LENGTH = 50


class Publication(BaseModel):
    """A published version of a shard's table."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: TableVersion = Field(description="version of the Lance table")
    content_digest: Digest = Field(min_length=8, description="changes if and only if the chunks or the embedder change")
    source_digest: Digest = Field(description="digest of the source listing (keys, etags, sizes) it was built from")
    fingerprint: Fingerprint = Field(description="embedder of the vectors")
    documents: Count
    chunks: Count
    quarantined: Count
    published_at: AwareDatetime
    run_id: str = Field(description="Dagster run that built it")
    published_by: str = Field("", description="run that published it, or person who rolled back to it")
    source_root: str = Field("", description="URI of the source that it was built from")
    languages: dict[Language, Count] = Field(
        default_factory=dict[str, int], description="chunks by language (ISO 639-1, empty if unknown), most first"
    )
    embedder_reads: tuple[Language, ...] | None = Field(None, description="languages of the embedder; null for any")
    table_format: int = Field(1, ge=1, description="version of the table's schema; see `tables.TABLE_FORMAT`")


class Hold(BaseModel):
    """Keeps a shard at its published version: runs still build new ones, but do not publish until the release."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    by: str
    since: AwareDatetime
    built_source_digest: Digest = Field("", description="source digest of the newest unpublished version")


class CatalogEntry(BaseModel):
    """The catalog object of a shard: its published version and earlier ones."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = Field(1, ge=1, le=1)
    region: str
    department: str
    table: str
    epoch: Epoch = Field(description="lease epoch of the writer that published")
    current: Publication
    history: tuple[Publication, ...] = Field((), max_length=HISTORY_LENGTH, description="newest first, without current")
    hold: Hold | None = None

    @property
    def shard(self) -> Shard:
        """The shard that this entry describes."""
        return Shard(self.region, self.department)

    @property
    def info(self) -> ShardInfo:
        """The entry as clients see it."""
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
        """Source digest of the newest version built: the one that a hold keeps back, or else the published one."""
        return (self.hold.built_source_digest if self.hold is not None else "") or self.current.source_digest

    def to_json(self) -> bytes:
        """Serialize the entry; `read_entry` is the inverse."""
        return self.model_dump_json(indent=1).encode()


def catalog_key(shard: Shard) -> str:
    """Return the key of a shard's catalog object."""
    return f"{CATALOG}/{shard.table_name}.json"


def shard_of_key(key: str) -> Shard | None:
    """Return the shard of a catalog object; None if the key is not one that the pipeline writes."""
    try:
        return Shard.from_table_name(table_of_key(key))
    except InvalidShardName:
        return None


def table_of_key(key: str) -> str:
    """Return the table name in the key of a catalog object."""
    return key.removeprefix(f"{CATALOG}/").removesuffix(".json")


def read_entry(shard: Shard, data: bytes) -> CatalogEntry:
    """Validate a catalog object; raises `LakeCorrupt`."""
    from rag_serving.lake.tables import TABLE_FORMAT  # importing pyarrow takes time

    try:
        entry = CatalogEntry.model_validate_json(data)
        if entry.shard != shard or entry.table != shard.table_name:
            described = entry.table if entry.shard == shard else entry.shard.key
            raise LakeCorrupt(f"the catalog object of {shard} describes {described!r}; publish the shard again")
    except (ValidationError, InvalidShardName) as error:
        problem = first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise LakeCorrupt(f"the catalog object of {shard} is malformed ({problem}); publish it again") from error
    if entry.current.table_format > TABLE_FORMAT:
        raise LakeCorrupt(
            f"{shard} was published by a newer release (table format {entry.current.table_format}, this one reads "
            f"{TABLE_FORMAT}); upgrade this installation"
        )
    return entry


def read_catalog_entry(objects: ObjectStore, shard: Shard) -> tuple[CatalogEntry, str] | None:
    """Read a shard's entry and its etag from the lake; None before the first publication."""
    stored = objects.get(catalog_key(shard))
    return None if stored is None else (read_entry(shard, stored.data), stored.etag)
