"""``python -m tests.servers install [DIR]``, which ``make servers`` runs."""

import sys
from pathlib import Path

from tests.servers.binaries import DEFAULT_FOLDER, ServersMissingError, install

USAGE = f"usage: python -m tests.servers install [DIR]   (DIR is {DEFAULT_FOLDER} by default)"


def main(arguments: list[str]) -> int:
    if not 1 <= len(arguments) <= 2 or arguments[0] != "install":
        print(USAGE, file=sys.stderr)
        return 2
    folder = Path(arguments[1]) if len(arguments) == 2 else DEFAULT_FOLDER
    try:
        print(install(folder))
    except ServersMissingError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


sys.exit(main(sys.argv[1:]))
