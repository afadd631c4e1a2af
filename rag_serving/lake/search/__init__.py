"""How published tables are searched: one implementation for serving, the quality gate and the benchmarks.

`plan` chooses tables, `fusion` merges their rankings. Models and what users see of hits are in `rag_serving.retrieval`.
"""
