"""Labelled pairs of questions asked through the client, over the documents of a lake.

Each pair starts with an empty cache: the cached question is asked first, then the other. A hit is an answer from the
exact or the semantic tier.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.reporting import show

HITS = ("exact", "semantic")


def ask_pairs(file: Path, lake: str, json_file: Path | None) -> None:
    """Ask the pairs of a JSON Lines file and print what was served, and which guard refused the others."""
    pairs: list[dict[str, Any]] = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
    outcomes = [(pair, *_asked(pair, lake)) for pair in pairs]
    rows: list[dict[str, object]] = []
    refused: dict[str, Counter[str]] = {}
    for same, name in ((True, "paraphrases"), (False, "near misses")):
        some = [(hit, guard) for pair, hit, guard, _ in outcomes if pair["same"] == same]
        served = sum(hit for hit, _ in some)
        refused[name] = Counter(guard for hit, guard in some if not hit)
        rows.append(
            {
                "pairs": name,
                "count": len(some),
                "served": served,
                "share": f"{served / len(some):.1%}" if some else "–",
                "refused by": ", ".join(f"{guard} {count}" for guard, count in refused[name].most_common()),
            }
        )
    for pair, hit, _, reason in outcomes:
        if hit != pair["same"]:
            print(f"{'missed' if pair['same'] else 'WRONG '} | {pair['cached']} | {pair['asked']} | {reason}")
    show(f"pairs of {file.name} through the client", rows, json_file, refused=refused)


def _asked(pair: dict[str, Any], lake: str) -> tuple[bool, str, str]:
    """Return whether the second question is a hit, the guard that refused it, and the reason."""
    from rag_serving.clients.lake import AsyncRagClient
    from rag_serving.clients.sync import RagClient
    from rag_serving.settings import ServingSettings

    settings = ServingSettings.model_validate({"lake_uri": lake})
    regions = [pair["region"]] if pair["region"] else None
    with RagClient(lambda: AsyncRagClient(settings)) as client:
        client.ask(pair["cached"], regions=regions)
        answer = client.ask(pair["asked"], regions=regions)
    reason = answer.cache_reason or "below the least similarity"
    guard = reason.partition("refused by ")[2].partition(":")[0]
    return answer.cache in HITS, guard or "similarity", reason
