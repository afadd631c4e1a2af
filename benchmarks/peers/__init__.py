"""Other pipelines on the same files, model, machine and vector store: ``python -m benchmarks.peers``.

`__main__` is the command, `environment` makes the environment that the peers run in, `contract` is what they share, and
every other module is one peer, run by that environment's Python. A peer imports nothing of this project but `contract`.
"""
