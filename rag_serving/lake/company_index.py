"""The company index as readers see it: which shards one wide table holds, in which state, and when it may be searched.

The pipeline writes one record per embedder (by conditional put); it names the version of the table to read and what of
each shard that version holds. A shard of which the record does not hold what the catalog names is searched directly.
"""

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rag_serving.errors import LakeCorrupt, first_problem
from rag_serving.lake.tables import shard_schema

COMPANY = "company_index"
"""Folder of the lake that holds the tables, one per embedder, named by its fingerprint."""

RECORDS = "company"
"""Folder of the lake that holds the record of each, beside nothing else: it is listed often."""

SHARD_COLUMN = "shard"
"""Column that a company table has beyond those of a shard's: ``region/department``."""


class IndexedShard(BaseModel):
    """What a company table holds of one shard."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    content_digest: str
    version: int = Field(ge=1, description="version of the shard's table that the rows were copied from")
    chunks: int = Field(ge=0)


class CompanyRecord(BaseModel):
    """What readers may rely on: at `version`, the table holds exactly those shards as described."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = Field(1, ge=1, le=1)
    fingerprint: str = Field(min_length=8, max_length=64, pattern=r"^[0-9a-f]+$")
    version: int = Field(ge=1, description="version of the Lance table")
    epoch: int = Field(ge=0, description="lease epoch of the writer")
    shards: dict[str, IndexedShard] = Field(description="by region/department")

    @property
    def rows(self) -> int:
        """Rows of the table at that version."""
        return sum(shard.chunks for shard in self.shards.values())


def company_schema(dimensions: int, fingerprint: str) -> pa.Schema:
    """Columns of a company table: those of a shard's table, and the shard."""
    schema = shard_schema(dimensions, fingerprint)
    return schema.append(pa.field(SHARD_COLUMN, pa.string(), nullable=False))


def record_key(fingerprint: str) -> str:
    """Key of the record of an embedder's company table."""
    return f"{RECORDS}/{fingerprint}.json"


def read_record(fingerprint: str, data: bytes) -> CompanyRecord:
    """Validate a record; raises `LakeCorrupt`."""
    try:
        record = CompanyRecord.model_validate_json(data)
    except ValidationError as error:
        raise LakeCorrupt(
            f"the record of the company index of {fingerprint} is malformed "
            f"({first_problem(error)}); delete it and materialize company_index"
        ) from error
    if record.fingerprint != fingerprint:
        raise LakeCorrupt(f"the record of the company index of {fingerprint} speaks of {record.fingerprint}; delete it")
    return record
