"""Quality of retrieval; each subcommand of ``python -m benchmarks.quality`` measures one aspect."""
