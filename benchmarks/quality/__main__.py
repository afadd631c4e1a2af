"""``python -m benchmarks.quality SUBCOMMAND``: each is a module of this package with a `main`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

SUBCOMMANDS = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py") if "def main()" in path.read_text())


def main() -> None:
    """Hand the rest of the command line to the subcommand."""
    if len(sys.argv) < 2 or sys.argv[1] not in SUBCOMMANDS:
        raise SystemExit(f"usage: python -m benchmarks.quality {{{','.join(SUBCOMMANDS)}}} …")
    name = sys.argv.pop(1)
    sys.argv[0] = f"benchmarks.quality {name}"
    importlib.import_module(f"benchmarks.quality.{name}").main()


if __name__ == "__main__":
    main()
