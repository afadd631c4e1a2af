"""The Dagster objects: assets, checks, jobs, sensors, schedules and resources.

They are thin: the work is in the plain modules of `rag_assets`, names and partitions are in `runs.names`.
"""
