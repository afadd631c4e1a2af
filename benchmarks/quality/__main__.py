"""Run the quality benchmark named by the first argument; `--help` after the name lists its options."""

from __future__ import annotations

import importlib
import sys

SUBCOMMANDS = ("chunking", "evidence", "extracts", "known-items", "retrieval")


def main() -> None:
    """Pass the other arguments to the named module."""
    if len(sys.argv) < 2 or sys.argv[1] not in SUBCOMMANDS:
        sys.exit(f"usage: python -m benchmarks.quality {{{','.join(SUBCOMMANDS)}}} …")
    importlib.import_module(f"benchmarks.quality.{sys.argv[1].replace('-', '_')}").main(sys.argv[2:])


if __name__ == "__main__":
    main()
