"""Start and watch runs: backfills, the bulk path, progress reports. Dagster types are allowed here."""
