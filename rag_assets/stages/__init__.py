"""One module per asset: what a run does to a shard, without Dagster."""
