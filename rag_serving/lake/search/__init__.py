"""Search of published tables: one implementation for serving, the quality gate and the benchmarks.

`plan` chooses tables, `engine` searches them, `fusion` merges their rankings. Models and hits are in
`rag_serving.retrieval`.
"""
