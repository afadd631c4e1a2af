"""From a question to hits: question vectors, search of several tables, reranking.

Planning, searching and fusing are in `lake.search`.
"""
