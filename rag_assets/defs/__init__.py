"""The Dagster objects: partitions, assets, checks, jobs, sensors, schedules, resources. Each is thin; the work is in
the plain modules of `rag_assets`.
"""
