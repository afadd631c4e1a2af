"""How good what is found is: each subcommand of ``python -m benchmarks.quality`` measures one thing."""
