"""The company index for readers: one table of many shards, and a record of what it contains.

The pipeline writes one record per embedder with conditional writes. It names the version of the table to read and the
version of each shard in it. Shards whose copy is out of date are searched directly.
"""

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rag_serving.errors import LakeCorrupt, first_problem
from rag_serving.lake.field_types import Count, Digest, Epoch, Fingerprint, ShardKey, TableVersion
from rag_serving.lake.tables import shard_schema

COMPANY = "company_index"
"""Folder of the lake with one table per embedder, named by fingerprint."""

RECORDS = "company"
"""Folder of the lake with the records and nothing else, because it is listed often."""

SHARD_COLUMN = "shard"
"""Column ``region/department`` that a company table has in addition to those of a shard's table."""


class IndexedShard(BaseModel):
    """The copy of a shard in a company table."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    content_digest: Digest
    version: TableVersion = Field(description="version of the shard's table that was copied")
    chunks: Count


class CompanyRecord(BaseModel):
    """The contents of a company table: at `version` it contains exactly these shards."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = Field(1, ge=1, le=1)
    fingerprint: Fingerprint
    version: TableVersion = Field(description="version of the Lance table")
    epoch: Epoch = Field(description="lease epoch of the writer")
    table_format: int = Field(2, ge=1, description="version of the schema; see `tables.TABLE_FORMAT`")
    shards: dict[ShardKey, IndexedShard] = Field(description="copies by region/department")

    @property
    def rows(self) -> int:
        """Number of rows of the table at `version`."""
        return sum(shard.chunks for shard in self.shards.values())


def company_schema(dimensions: int, fingerprint: str) -> pa.Schema:
    """Return the schema of a company table: that of a shard's table, and the shard."""
    schema = shard_schema(dimensions, fingerprint)
    return schema.append(pa.field(SHARD_COLUMN, pa.string(), nullable=False))


def record_key(fingerprint: str) -> str:
    """Return the key of the record of an embedder's company table."""
    return f"{RECORDS}/{fingerprint}.json"


def read_record(fingerprint: str, data: bytes) -> CompanyRecord:
    """Validate a record; raises `LakeCorrupt`."""
    try:
        record = CompanyRecord.model_validate_json(data)
    except ValidationError as error:
        raise LakeCorrupt(
            f"the company index record of {fingerprint} is malformed ({first_problem(error)}); "
            "delete it and materialize company_index"
        ) from error
    if record.fingerprint != fingerprint:
        raise LakeCorrupt(f"the company index record of {fingerprint} describes {record.fingerprint}; delete it")
    return record
