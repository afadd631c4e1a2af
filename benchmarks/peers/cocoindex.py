"""CocoIndex: an app of `RecursiveSplitter` and `SentenceTransformerEmbedder` with a LanceDB table as its target state.

Its splitter counts bytes. The size is chosen so that few chunks of prose exceed the model's window; the model does not
read the excess. CocoIndex keeps its own state in a file next to the table, as for its users.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated

import cocoindex as coco
from cocoindex.connectors import lancedb, localfs
from cocoindex.ops.sentence_transformers import SentenceTransformerEmbedder
from cocoindex.ops.text import RecursiveSplitter
from cocoindex.resources.chunk import Chunk
from cocoindex.resources.file import FileLike
from cocoindex.resources.id import IdGenerator
from numpy.typing import NDArray

from benchmarks.peers.contract import WARM_UP, Task, answer

CHUNK_BYTES = 1000

DATABASE = coco.ContextKey[lancedb.LanceAsyncConnection]("database")
EMBEDDER = coco.ContextKey[SentenceTransformerEmbedder]("embedder")
SPLITTER = RecursiveSplitter()


@dataclass
class Row:
    """One chunk in the table."""

    id: int
    source: str
    text: str
    # The engine reads the dimensions of the vectors from this annotation.
    vector: Annotated[NDArray, EMBEDDER]


@coco.fn
async def write_chunk(chunk: Chunk, source: PurePath, ids: IdGenerator, table: lancedb.TableTarget[Row]) -> None:
    """Declare the row of one chunk; the engine batches the texts that wait for their vectors."""
    vector = await coco.use_context(EMBEDDER).embed(chunk.text)
    table.declare_row(row=Row(await ids.next_id(chunk.text), source.as_posix(), chunk.text, vector))


@coco.fn(memo=True)
async def index_file(file: FileLike, table: lancedb.TableTarget[Row]) -> None:
    """Split one file and write its chunks."""
    text = await file.read_text()
    chunks = SPLITTER.split(text, CHUNK_BYTES, chunk_overlap=0, language="markdown")
    await coco.map(write_chunk, chunks, file.file_path.path, IdGenerator(), table)


@coco.fn
async def index_folder(source: Path) -> None:
    """Mount every file of the folder as a separate component."""
    schema = await lancedb.TableSchema.from_class(Row, primary_key=["id"])
    table = await lancedb.mount_table_target(DATABASE, "chunks", schema)
    await coco.mount_each(index_file, localfs.walk_dir(source, recursive=True).items(), table)


def prepare(task: Task) -> Callable[[], int]:
    """Load the model and return the ingestion."""
    embedder = SentenceTransformerEmbedder(str(task.model), device="cpu")
    embedder._get_model().encode([WARM_UP])  # load it before the clock starts

    @coco.lifespan
    async def resources(builder: coco.EnvironmentBuilder) -> AsyncIterator[None]:
        builder.settings.db_path = task.target.with_name(task.target.name + "-state")
        builder.provide(DATABASE, await lancedb.connect_async(str(task.target)))
        builder.provide(EMBEDDER, embedder)
        yield

    app = coco.App(coco.AppConfig(name="Ingest"), index_folder, source=task.source)

    def ingest() -> int:
        asyncio.run(_update(app))
        return sum(1 for _ in task.files())

    return ingest


async def _update(app: coco.App) -> None:
    await app.update()


if __name__ == "__main__":
    answer(prepare, distribution="cocoindex")
