"""The Dagster objects: assets, checks, jobs, sensors, schedules, resources. Each is thin.

Names and partitions are in `runs.names`; the work is in the plain modules of `rag_assets`.
"""
