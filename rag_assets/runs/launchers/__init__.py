"""Run launchers for dagster.yaml that judge a run by its heartbeat in the lake, one module per way to launch.

The base classes start and stop runs; `judged` adds the health check. The daemon and the webserver load these modules.
"""
