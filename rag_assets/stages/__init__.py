"""What a run does to a shard, without Dagster: a module for each step that builds tables, and `document_state`."""
