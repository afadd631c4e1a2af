"""Measurements, one command each: ``python -m benchmarks.NAME [--quick] [--json FILE]``. None of them is a test."""
