"""Other pipelines on the same files, model, machine and vector store: ``python -m benchmarks.peers``.

`__main__` is the command, `environment` creates the peers' virtual environment, and `contract` is shared by the peers.
`splitting` is for `benchmarks.quality`. Every other module is one peer, run by that environment's Python; it imports
nothing of this project except `contract`.
"""
