"""Start and watch runs: backfills, the bulk path, progress. Dagster types are allowed here."""
