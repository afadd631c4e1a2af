"""How well the cache distinguishes paraphrases from other questions: ``python -m benchmarks.guards``."""
