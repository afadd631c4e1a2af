"""Retrieval of hits for a question: question vectors, search of several tables, reranking.

Query planning, table searches and fusion are in `lake.search`.
"""
