"""Decides whether a cached answer may be served for another question, and why.

Two questions that an embedder sees as one may still ask for different things. `Judge` compares their numbers, units,
dates, names, codes, negations, directions and scopes by rules, the passages that both retrieve, and their wording; what
is left is decided by a calibrated threshold of the cosine.
"""
