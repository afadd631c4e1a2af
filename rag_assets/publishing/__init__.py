"""From a built table to what readers see: checks, publish, rollback, retention, maintenance, catalog writes."""
