"""The command `rag-serving calibrate`: fits the cache's model to labelled pairs of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rag_serving.cache.guards.calibration import LEAST_SIMILARITY, Labelled, calibrate, folded, upper_bound
from rag_serving.cache.guards.judge import Calibration, Pair
from rag_serving.cache.guards.signals import Evidence
from rag_serving.errors import InvalidArgument, UnknownScope

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from rag_serving.lake.embedders.base import Embedder


PLAIN = (0.90, 0.95, 0.98)
"""Thresholds of the cosine alone that a calibration is shown beside."""


class Passage(BaseModel):
    """A retrieved passage in a line of pairs."""

    model_config = ConfigDict(extra="ignore")

    content_hash: str
    chunk_id: str = ""
    cited: bool = False


class Line(BaseModel):
    """One line of a file of pairs."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    asked: str = Field(min_length=1)
    cached: str = Field(min_length=1)
    same: bool
    similarity: float | None = Field(None, ge=-1.001, le=1.001)
    asked_evidence: list[Passage] | None = None
    cached_evidence: list[Passage] | None = None


def read_pairs(path: Path) -> list[Line]:
    """The pairs of a JSON Lines file, blank lines left out; raises `InvalidArgument` that names the wrong line."""
    lines: list[Line] = []
    for number, text in enumerate(path.read_text("utf-8").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            lines.append(Line.model_validate_json(text))
        except ValidationError as error:
            problem = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(map(str, problem["loc"])) or "the line"
            raise InvalidArgument(f"line {number} of {path}: {where}: {problem['msg']}") from None
    return lines


def labelled(lines: Sequence[Line], embed: Callable[[Sequence[str]], npt.NDArray[np.float32]]) -> list[Labelled]:
    """The pairs with their cosines; `embed` turns texts into unit vectors, and is called for pairs without one."""
    texts = list(dict.fromkeys(t for line in lines if line.similarity is None for t in (line.asked, line.cached)))
    vectors = dict(zip(texts, embed(texts), strict=True)) if texts else {}
    return [
        Labelled(
            Pair(
                line.asked,
                line.cached,
                float(vectors[line.asked] @ vectors[line.cached]) if line.similarity is None else line.similarity,
                _evidence(line.asked_evidence),
                _evidence(line.cached_evidence),
            ),
            line.same,
        )
        for line in lines
    ]


def table(calibration: Calibration, pairs: Sequence[Labelled]) -> list[tuple[str, str, str, str, str]]:
    """What each bound serves of these pairs by cross-fitting, beside plain cosines; the first row is the heading."""
    duplicates = sum(one.same for one in pairs)

    def row(name: str, served: int, wrong: int) -> tuple[str, str, str, str, str]:
        share = f"{(served - wrong) / duplicates:.1%}" if duplicates else "–"
        return name, share, str(wrong), str(served), f"{upper_bound(wrong, served):.2%}"

    rows = [("rule", "duplicates served", "wrong hits", "hits", "95 % upper bound of wrong")]
    for threshold in calibration.thresholds:
        risk = "nothing served" if threshold.risk is None else f"risk to {max(threshold.risk, 0):.2%}"
        name = f"at most {threshold.max_error:.1%} wrong ({risk})"
        rows.append(row(name, threshold.served, threshold.wrong))
    for least in PLAIN:
        served = [one.same for one in pairs if one.pair.similarity >= least]
        rows.append(row(f"cosine from {least:.2f}", len(served), served.count(False)))
    return rows


@click.command("calibrate")
@click.argument("pairs", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Where the calibration is written."
)
@click.option("--sure", type=float, default=0.98, show_default=True, help="Cosine from which the model is not asked.")
@click.option("--least", type=float, default=LEAST_SIMILARITY, show_default=True, help="Cosine below which nothing is.")
@click.option("--fingerprint", help="Embedder of the lake to use; not needed where all shards have the same.")
def calibrate_command(pairs: Path, out: Path, sure: float, least: float, fingerprint: str | None) -> None:
    """Fit the cache's model to PAIRS: lines of JSON with `asked`, `cached` and `same` (true or false).

    `similarity` may be given; else it is computed with the lake's embedder. So may `asked_evidence` and
    `cached_evidence`, lists of objects with a `content_hash`, best first.
    """
    lines = read_pairs(pairs)
    used: list[str] = [fingerprint] if fingerprint else []

    def embed(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        import numpy as np

        embedder = _embedder(fingerprint)
        used[:] = [embedder.identity.fingerprint]
        return np.stack([embedder.embed_query(text) for text in texts])

    examples = labelled(lines, embed)
    calibration = calibrate(
        folded(examples),
        least_similarity=least,
        sure=sure,
        fingerprint=used[0] if used else None,
        provenance={"file": pairs.name},
    )
    out.write_text(calibration.model_dump_json(indent=1) + "\n", "utf-8")
    rows = table(calibration, examples)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        click.echo("  ".join([row[0].ljust(widths[0]), *cells]))
    click.echo(f"written to {out}; RAG_CACHE_CALIBRATION={out} makes the cache use it")


def _embedder(fingerprint: str | None) -> Embedder:
    from rag_serving.lake.catalog import Catalog
    from rag_serving.lake.embedders.loading import load_embedder
    from rag_serving.lake.object_store import open_object_store
    from rag_serving.settings import ServingSettings

    objects = open_object_store(ServingSettings.from_env().lake_uri)
    if fingerprint is None:
        entries = Catalog(objects).snapshot().entries.values()
        known = sorted({entry.current.fingerprint for entry in entries})
        if not known:
            raise UnknownScope("nothing is published in RAG_LAKE_URI; publish a shard, or give every pair a similarity")
        if len(known) > 1:
            raise InvalidArgument(f"the shards have several embedders; name one with --fingerprint: {', '.join(known)}")
        fingerprint = known[0]
    return load_embedder(objects, fingerprint)


def _evidence(passages: list[Passage] | None) -> tuple[Evidence, ...] | None:
    if passages is None:
        return None
    return tuple(Evidence(one.chunk_id, one.content_hash, None, one.cited) for one in passages)
