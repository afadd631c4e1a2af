"""Decides whether a cached answer may be served for another question, and why.

Questions with nearly the same vector may still ask for different things. `Judge` compares their numbers, units, dates,
names, codes, negations, directions and scopes by rules, then their wording and the passages that both retrieve. Pairs
that pass are decided by a calibrated cosine threshold.
"""
