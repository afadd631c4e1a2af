"""Count served duplicates and wrong hits of the cache guards on the reporting part, and of plain cosine thresholds.

Each setting of the guards is followed by the plain threshold that serves as many duplicates. With --calibrate, the
shipped calibration is first recomputed from the tuning part. With --pairs and --lake, labelled pairs are asked through
the client instead: first the cached question, then the one asked, each pair with an empty cache.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.guards.end_to_end import ask_pairs
from benchmarks.guards.pairs import (
    SEED,
    Embed,
    Labelled,
    disputed,
    entailed,
    intents,
    on_paragraphs,
    read_banking,
    read_clinc,
    read_paragraphs,
    retrieve,
)
from benchmarks.ingest import export
from benchmarks.quality.retrieval import VectorCache
from benchmarks.reporting import arguments, show
from rag_serving.cache.guards import calibration
from rag_serving.cache.guards.judge import SHIPPED, Judge, Pair

SHIPPED_FILE = Path(calibration.__file__).with_name(SHIPPED)
PLAIN = (0.90, 0.95, 0.98)
"""Plain thresholds to compare; 0.90 is RedisVL's default, a distance of 0.1."""
ERRORS = (0.005, 0.01, 0.02, 0.05)
ALL = "all"
QUICK = 400

Rules = dict[str, Callable[[Labelled], bool]]


def read(data: Path, embed: Embed, fingerprint: str, limit: int | None) -> list[Labelled]:
    """Read the labelled pairs; a limit keeps only the first questions and paragraphs.

    Only SQuAD's pairs have evidence, because the other sets have no documents.
    """
    paragraphs = read_paragraphs(data / "squad")[: limit and limit // 8]
    pairs = entailed(data / "rqe", embed)[:limit]
    pairs += intents("banking77", read_banking(data / "banking77")[:limit], embed)
    pairs += intents("clinc150", read_clinc(data / "clinc150")[:limit], embed)
    return pairs + retrieve(on_paragraphs(paragraphs, embed), paragraphs, embed, fingerprint)


def pair_of(one: Labelled) -> Pair:
    return Pair(one.asked, one.cached, one.similarity, one.asked_evidence, one.cached_evidence)


def recalibrate(pairs: Sequence[Labelled], fingerprint: str, model: str) -> None:
    """Write the shipped calibration from the tuning part, with figures of the reporting part."""
    made = calibration.calibrate(
        [calibration.Labelled(pair_of(one), one.same) for one in pairs if one.part == "tune"],
        fingerprint=fingerprint,
        provenance={
            "embedder": model,
            "sets": "RQE; SQuAD 2.0 dev; banking77 and clinc150 (questions of different intents)",
            "part": f"two thirds by a hash seeded {SEED!r}; made by python -m benchmarks.guards --calibrate",
        },
    )
    judge = Judge(made)
    held_back = [one for one in pairs if one.part == "report"]
    rules: Rules = {"guards, at most 1% wrong": lambda one: judge.judge(pair_of(one)).serve}
    figures = rows_of(held_back, rules | plain())
    made = made.model_copy(update={"report": {"part": "the other third", "rows": figures}})
    SHIPPED_FILE.write_text(made.model_dump_json(indent=1) + "\n", "utf-8")


def plain() -> Rules:
    """Return the rules of caches with a cosine threshold only."""
    return {f"cosine {least:.2f}": lambda one, least=least: one.similarity >= least for least in PLAIN}


def guards(pairs: Sequence[Labelled]) -> Rules:
    """Return the rule of each error bound, followed by the plain threshold that serves as many duplicates."""
    rules: Rules = {}
    cosines = sorted((one.similarity for one in pairs if one.same), reverse=True)
    for error in ERRORS:
        judge = Judge.shipped(max_error=error)
        rules[f"guards, at most {error:.1%} wrong"] = lambda one, judge=judge: judge.judge(pair_of(one)).serve
        served = sum(one.same and judge.judge(pair_of(one)).serve for one in pairs)
        if served:
            least = cosines[served - 1]
            rules[f"cosine {least:.3f}, as many"] = lambda one, least=least: one.similarity >= least
    return rules


def rows_of(pairs: Sequence[Labelled], rules: dict[str, Callable[[Labelled], bool]]) -> list[dict[str, object]]:
    """Return one row per set and rule, and at the end those of all sets together."""
    rows: list[dict[str, object]] = []
    for name in (*dict.fromkeys(one.set for one in pairs), ALL):
        some = [one for one in pairs if name in (ALL, one.set)]
        same = sum(one.same for one in some)
        for rule, serves in rules.items():
            hits = [one for one in some if serves(one)]
            wrong = sum(not one.same for one in hits)
            rows.append(
                {
                    "set": name,
                    "rule": rule,
                    "duplicates": same,
                    "served": f"{(len(hits) - wrong) / same:.1%}" if same else "–",
                    "non-duplicates": len(some) - same,
                    "wrong": wrong,
                    "wrong share of hits": f"{wrong / len(hits):.2%}" if hits and same else "–",
                    "95% bound": f"{calibration.upper_bound(wrong, len(hits)):.2%}" if hits and same else "–",
                }
            )
    return rows


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="cache vectors in FOLDER by the hash of their text"
    )
    parser.add_argument(
        "--calibrate", action="store_true", help="calibrate on the tuning part and overwrite the shipped file"
    )
    parser.add_argument("--part", choices=["tune", "report"], default="report", help="part to show (default: report)")
    parser.add_argument("--misses", action="store_true", help="with --part tune: print the wrong hits")
    parser.add_argument(
        "--pairs",
        type=Path,
        metavar="FILE",
        help="ask these pairs: JSON Lines with asked, cached, same and region (null for all); needs --lake",
    )
    parser.add_argument("--lake", metavar="URI", help="lake with the documents of --pairs")
    options = parser.parse_args()
    if options.pairs:
        if not options.lake:
            parser.error("--pairs needs --lake")
        ask_pairs(options.pairs, options.lake, options.json)
        return
    data = os.environ.get("RAG_TEST_DATA")
    if not data:
        parser.error("needs the test data: set RAG_TEST_DATA to a folder that contains eval/")
    if options.calibrate and options.quick:
        parser.error("--calibrate needs all pairs and cannot be combined with --quick")
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as lake:
        export(lake)
        from rag_assets.models.registry import warm_embedder
        from rag_assets.options import PACKAGED_MODEL

        embedder = warm_embedder(lake, PACKAGED_MODEL)
        cache = VectorCache(embedder, options.cache)
        # The packaged model has no prompts, so questions can be embedded as documents, which are batched.
        pairs = read(Path(data, "eval"), cache.documents, cache.fingerprint, QUICK if options.quick else None)
    doubt = disputed(pairs)
    held = [one for one, doubtful in zip(pairs, doubt, strict=True) if not doubtful]
    if options.calibrate:
        recalibrate(held, cache.fingerprint, embedder.identity.model)
    shown = [one for one in held if one.part == options.part]
    rules = guards(shown) | plain()
    first = " (A FEW QUESTIONS ONLY, DO NOT QUOTE)" if options.quick else ""
    judge = Judge.shipped()
    refused: dict[str, Counter[str]] = {"duplicates": Counter(), "others": Counter()}
    for one in shown:
        if one.similarity >= judge.least_similarity:
            verdict = judge.judge(pair_of(one))
            refused["duplicates" if one.same else "others"][verdict.guard or "served"] += 1
            if options.misses and options.part == "tune" and verdict.serve and not one.same:
                print(f"{one.set} | {one.asked} | {one.cached} | {verdict.reason}")
    doubtful = [one for one, odd in zip(pairs, doubt, strict=True) if odd and one.part == options.part]
    as_labelled = {name: sum(serves(one) for one in doubtful) for name, serves in rules.items()}
    show(
        f"cache guards, part “{options.part}”{first}",
        rows_of(shown, rules),
        options.json,
        guards=refused,
        disputed={"pairs": len(doubtful), "served": as_labelled},
    )
    names = sorted({name for counts in refused.values() for name in counts})
    show(
        f"deciding guard, cosine of at least {judge.least_similarity}{first}",
        [{"guard": name, **{kind: counts[name] for kind, counts in refused.items()}} for name in names],
        None,
    )
    print(f"excluded {len(doubtful)} pairs with disputed labels, of which these were served: {as_labelled}")


if __name__ == "__main__":
    main()
