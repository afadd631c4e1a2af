"""Check the rows that a search returned: their columns, their values, and that they are of a shard that was asked for.

The tables are untrusted, and a filter of the database may fail. Nothing else checks rows, so every search passes here.
"""

from collections.abc import Collection, Sequence
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from rag_serving.errors import LakeCorrupt
from rag_serving.lake.company_index import SHARD_COLUMN, company_schema

_SCHEMA: Any = company_schema(1, "")
_VECTOR = "vector"
_EARLIEST, _LATEST = -62_135_510_400_000_000, 253_402_214_400_000_000
"""Microseconds of the times that Python can convert from and to any time zone: the years 1 to 9999 less a day."""

# pyarrow's own annotations lack most functions.
_compute: Any = cast("Any", pc)


def admitted(
    rows: pa.Table, columns: Sequence[str], shards: Collection[str], dimensions: int | None = None
) -> pa.Table:
    """Return the valid rows of these shards.

    `columns` are those of the table that were read, `dimensions` those of the question's vector. Raises `LakeCorrupt`
    if a column is missing or has another type.
    """
    rows = rows.combine_chunks()  # numbers of rows within a chunk are then those within the table
    for name in columns:
        _check_type(rows, name, dimensions)
    valid: Any = _of_shards(rows, columns, shards)
    for name in columns:
        valid = _compute.and_(valid, _valid(rows, name))
    return rows.filter(_compute.fill_null(valid, False))


def _check_type(rows: pa.Table, name: str, dimensions: int | None) -> None:
    table: Any = rows
    vector: Any = pa.list_(pa.float32(), dimensions or 1)
    expected = vector if name == _VECTOR else _SCHEMA.field(name).type
    found = table[name].type if name in table.column_names else None
    if found != expected:
        raise LakeCorrupt(f"the column {name} is {found or 'missing'} instead of {expected}; index the shard again")


def _of_shards(rows: pa.Table, columns: Sequence[str], shards: Collection[str]) -> Any:
    table: Any = rows
    if SHARD_COLUMN in columns:
        found = table[SHARD_COLUMN]
    elif "region" in columns:
        found = _compute.binary_join_element_wise(table["region"], table["department"], "/")
    else:  # further columns of rows that were admitted before
        return pa.array([True] * rows.num_rows, pa.bool_())
    return _compute.is_in(found, value_set=pa.array(sorted(shards), pa.string()))


def _valid(rows: pa.Table, name: str) -> Any:
    values: Any = cast("Any", rows)[name]
    field = _SCHEMA.field(name)
    if pa.types.is_timestamp(field.type):
        times = values.cast(pa.int64())
        return _compute.and_(_compute.greater_equal(times, _EARLIEST), _compute.less_equal(times, _LATEST))
    if name == "heading_path":
        empty = _compute.list_parent_indices(values).filter(_compute.is_null(_compute.list_flatten(values)))
        numbers = pa.array(range(rows.num_rows), pa.int64())
        return _compute.invert(_compute.is_in(numbers, value_set=empty.cast(pa.int64())))
    return _compute.is_valid(values) if not field.nullable else pa.array([True] * rows.num_rows, pa.bool_())
