"""Whether a cached answer may be served for another question, and why.

Two questions that an embedder sees as one may still ask for other things. `Judge` compares their numbers, units, dates,
names, codes, negations, directions and scopes, the passages that both retrieve, and last their wording by a small
calibrated model.
"""

from __future__ import annotations

from rag_serving.cache.guards.judge import Calibration, Judge, Pair, Threshold, Verdict
from rag_serving.cache.guards.particulars import Guard
from rag_serving.cache.guards.signals import Evidence

__all__ = ["Calibration", "Evidence", "Guard", "Judge", "Pair", "Threshold", "Verdict"]
