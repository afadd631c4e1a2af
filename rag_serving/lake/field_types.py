"""Types of the fields in the lake's records, which become paths, table names, filters and cache tags.

The lake is untrusted: a value must look like one that the pipeline writes before it is used.
"""

from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from rag_serving.errors import InvalidShardName
from rag_serving.lake.shards import Shard

_LARGEST = 2**53 - 1
"""Largest integer that every reader of JSON keeps; those of Lance and Arrow are larger."""


def _shard_key(key: str) -> str:
    try:
        return Shard.parse(key).key
    except InvalidShardName as error:
        raise ValueError(str(error)) from None


Fingerprint = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
"""Of an embedder; see `EmbedderIdentity.fingerprint`."""
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[!-~]{0,200}$")]
"""Of documents or of a listing; opaque to readers."""
TableVersion = Annotated[int, Field(ge=1, le=_LARGEST)]
Epoch = Annotated[int, Field(ge=0, le=_LARGEST)]
Count = Annotated[int, Field(ge=0, le=_LARGEST)]
Language = Annotated[str, StringConstraints(pattern=r"^[a-z]{0,8}$")]
"""ISO 639-1; empty if unknown."""
ShardKey = Annotated[str, AfterValidator(_shard_key)]
"""``region/department``."""
ModelName = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,1000}$")]
GraphInput = Annotated[str, StringConstraints(pattern=r"^(input_ids|attention_mask|token_type_ids)$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
