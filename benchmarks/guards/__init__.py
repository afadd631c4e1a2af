"""How well the cache tells a reworded question from another one: ``python -m benchmarks.guards``."""
