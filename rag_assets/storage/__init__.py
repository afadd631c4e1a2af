"""The pipeline's side of the lake: tables, schemas, leases, indexes and fenced writes."""
