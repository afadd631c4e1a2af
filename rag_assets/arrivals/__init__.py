"""Which shards need a run: decisions over listings and events. Nothing here starts a run."""
