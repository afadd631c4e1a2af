"""The command `rag-serving calibrate`: reads labelled pairs, calibrates the cache and prints the effect of each bound.

How thresholds are chosen belongs to `cache.guards.calibration`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rag_serving.cache.evidence_record import Evidence
from rag_serving.cache.guards.calibration import LEAST_SIMILARITY, Labelled, calibrate, upper_bound
from rag_serving.cache.guards.judge import Calibration, Pair
from rag_serving.errors import InvalidArgument, UnknownScope, first_problem

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from rag_serving.lake.embedders.base import Embedder


class EvidenceLine(BaseModel):
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
    asked_evidence: list[EvidenceLine] | None = None
    cached_evidence: list[EvidenceLine] | None = None


def read_pairs(path: Path) -> list[Line]:
    """Read the pairs of a JSON Lines file. Raises `InvalidArgument`, which names the first invalid line."""
    lines: list[Line] = []
    for number, text in enumerate(path.read_text("utf-8").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            lines.append(Line.model_validate_json(text))
        except ValidationError as error:
            raise InvalidArgument(f"line {number} of {path}: {first_problem(error)}") from None
    return lines


def labelled(lines: Sequence[Line], embed: Callable[[Sequence[str]], "npt.NDArray[np.float32]"]) -> list[Labelled]:
    """Return the pairs with their cosines; `embed` maps texts to unit vectors, for pairs without a cosine."""
    texts = list(dict.fromkeys(t for line in lines if line.similarity is None for t in (line.asked, line.cached)))
    vectors = dict(zip(texts, embed(texts), strict=True)) if texts else {}
    found: list[Labelled] = []
    for line in lines:
        similarity = line.similarity
        if similarity is None:
            similarity = float(vectors[line.asked] @ vectors[line.cached])
        evidence = _evidence(line.asked_evidence), _evidence(line.cached_evidence)
        found.append(Labelled(Pair(line.asked, line.cached, similarity, *evidence), line.same))
    return found


def plain_hits(pairs: Sequence[Labelled], duplicates: int) -> tuple[float, int, int]:
    """Return the cosine that serves this number of duplicates without guards, its hits, and the wrong ones."""
    least = sorted((one.pair.similarity for one in pairs if one.same), reverse=True)[duplicates - 1]
    served = [one.same for one in pairs if one.pair.similarity >= least]
    return least, len(served), served.count(False)


def table(calibration: Calibration, pairs: Sequence[Labelled]) -> list[tuple[str, ...]]:
    """Return what each bound serves of these pairs, and the plain cosine that serves as many duplicates.

    The first row is the heading.
    """
    duplicates = sum(one.same for one in pairs)

    def row(name: str, served: int, wrong: int) -> tuple[str, ...]:
        share = f"{(served - wrong) / duplicates:.1%}" if duplicates else "–"
        return name, share, str(wrong), str(served), f"{upper_bound(wrong, served):.2%}"

    rows: list[tuple[str, ...]] = [("rule", "duplicates served", "wrong hits", "hits", "95 % upper bound of wrong")]
    for threshold in calibration.thresholds:
        reached = "nothing served" if threshold.score is None else f"score from {threshold.score:.3f}"
        rows.append(row(f"at most {threshold.max_error:.1%} wrong ({reached})", threshold.served, threshold.wrong))
        duplicates_served = threshold.served - threshold.wrong
        if duplicates_served:
            plain = plain_hits(pairs, duplicates_served)
            rows.append(row(f"  no guards, cosine from {plain[0]:.3f}", *plain[1:]))
    return rows


@click.command("calibrate", short_help="Calibrate the semantic cache on labelled pairs of questions.")
@click.argument("pairs", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File to write.")
@click.option(
    "--sure",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.98,
    show_default=True,
    help="At or above this similarity, ignore evidence.",
)
@click.option(
    "--least",
    type=click.FloatRange(0, 1),
    default=LEAST_SIMILARITY,
    show_default=True,
    help="Ignore pairs below this similarity.",
)
@click.option("--fingerprint", help="Embedder to use if the shards have more than one.")
def calibrate_command(pairs: Path, out: Path, sure: float, least: float, fingerprint: str | None) -> None:
    """Calibrate the semantic cache on PAIRS: lines of JSON with `asked`, `cached` and `same` (true or false).

    `similarity` is optional and computed with the lake's embedder by default. `asked_evidence` and `cached_evidence`,
    lists of objects with a `content_hash`, best first, are optional, too.

    Example: rag-serving calibrate pairs.jsonl --out calibration.json
    """
    lines = read_pairs(pairs)
    used: list[str] = [fingerprint] if fingerprint else []

    def embed(texts: Sequence[str]) -> "npt.NDArray[np.float32]":
        embedder = _embedder(fingerprint)
        used[:] = [embedder.identity.fingerprint]
        return embedder.embed_queries(texts)

    examples = labelled(lines, embed)
    calibration = calibrate(
        examples,
        least_similarity=least,
        sure=sure,
        fingerprint=used[0] if used else None,
        provenance={"file": pairs.name},
    )
    out.write_text(calibration.model_dump_json(indent=1) + "\n", "utf-8")
    _print_table(table(calibration, examples))
    click.echo(f"wrote {out}; set RAG_CACHE_CALIBRATION={out} to use it")


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        click.echo("  ".join([row[0].ljust(widths[0]), *cells]))


def _embedder(fingerprint: str | None) -> "Embedder":
    from rag_serving.lake.catalog import Catalog
    from rag_serving.lake.embedders.loading import load_embedder
    from rag_serving.lake.object_store import open_object_store
    from rag_serving.settings import ServingSettings

    settings = ServingSettings.from_env()
    lake = settings.lake_uri
    objects = open_object_store(lake)
    if fingerprint is None:
        entries = Catalog(objects).snapshot().entries.values()
        known = sorted({entry.current.fingerprint for entry in entries})
        if not known:
            raise UnknownScope(f"nothing is published in {lake}; check RAG_LAKE_URI, or add `similarity` to every pair")
        if len(known) > 1:
            raise InvalidArgument(f"the shards use several embedders; pass --fingerprint, one of {', '.join(known)}")
        fingerprint = known[0]
    return load_embedder(objects, fingerprint, hosted=settings.allowed_embedders)


def _evidence(passages: list[EvidenceLine] | None) -> tuple[Evidence, ...] | None:
    if passages is None:
        return None
    return tuple(Evidence(one.chunk_id, one.content_hash, None, one.cited) for one in passages)
