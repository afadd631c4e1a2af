"""Benchmarks, one command each: ``python -m benchmarks.NAME [--quick] [--json FILE]``. Tests belong in `tests`."""
