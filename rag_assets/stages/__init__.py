"""The steps of a run that build tables, without Dagster: one module each, and `document_state`."""
