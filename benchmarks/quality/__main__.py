"""Runs the benchmark of quality that the first argument names; `--help` after the name says what it takes."""

from __future__ import annotations

import importlib
import sys

SUBCOMMANDS = ("chunking", "evidence", "retrieval")


def main() -> None:
    """Hand the other arguments to the module of that name."""
    if len(sys.argv) < 2 or sys.argv[1] not in SUBCOMMANDS:
        sys.exit(f"usage: python -m benchmarks.quality {{{','.join(SUBCOMMANDS)}}} …")
    importlib.import_module(f"benchmarks.quality.{sys.argv[1]}").main(sys.argv[2:])


if __name__ == "__main__":
    main()
