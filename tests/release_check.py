"""Build the release and try it as its users would: every extra from the wheel alone, in an environment of its own.

python -m tests.release_check [EXTRA]...

Builds the sdist and from it the wheel, checks their metadata, installs each extra, runs `pip check`, and uses it:
indexes the sample corpus of the sdist, asks that lake and a service. Prints the size of each environment and fails if
one is larger than its limit.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
QUESTION = "How many weeks of parental leave are on full pay?"
IMPORT_SECONDS = 0.3
"""CPU seconds that importing a client of a service may take."""
_MEASURE_IMPORT = """
import sys, time
started = time.process_time()
from rag_serving import RagClient
client = RagClient(base_url="http://127.0.0.1:1")
print(time.process_time() - started)
client.close()
heavy = {"lancedb", "openvino", "pyarrow", "numpy", "pandas"} & sys.modules.keys()
assert not heavy, heavy
"""


@dataclass(frozen=True)
class Release:
    """The files of a release, and where it is tried."""

    wheel: Path
    source: Path
    """The unpacked sdist."""
    folder: Path

    @property
    def lake(self) -> Path:
        return self.folder / "lake"


@dataclass(frozen=True)
class Environment:
    """A virtual environment that holds one extra of the wheel."""

    folder: Path
    variables: dict[str, str]

    def run(self, *command: str, expect: int = 0) -> str:
        """Run a program of the environment and return what it prints; raises RuntimeError for another exit status."""
        program, *arguments = command
        done = subprocess.run(
            [self.folder / "bin" / program, *arguments],
            cwd=self.folder,
            env=self.variables,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != expect:
            raise RuntimeError(f"{' '.join(command)} exited {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done.stdout + done.stderr

    def python(self, code: str) -> str:
        return self.run("python", "-c", code)

    def mebibytes(self) -> float:
        """Return the size of what pip installed, without bytecode and pip itself."""
        packages = self.folder / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
        files = (path for path in packages.rglob("*") if not path.is_dir())
        installed = (path for path in files if not {"__pycache__", "pip", "setuptools"} & set(path.parts))
        return sum(path.lstat().st_size for path in installed) / 2**20


def build(folder: Path) -> Release:
    """Build sdist and wheel and check their metadata."""
    dist = folder / "dist"
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(dist), str(ROOT)], check=True, capture_output=True)
    files = sorted(map(str, dist.iterdir()))
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True)
    (wheel,), (archive,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return Release(wheel, folder / archive.name.removesuffix(".tar.gz"), folder)


def install(release: Release, extras: str) -> tuple[Environment, float]:
    """Install extras of the wheel and return the environment and the seconds that it took."""
    folder = release.folder / f"env-{extras.replace(',', '-') or 'base'}"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    constraints = folder / "constraints.txt"
    # PyTorch's package for Linux brings several GB of CUDA, so its version is that of the development environment.
    pinned = (ROOT / "requirements" / "dev.lock").read_text().splitlines()
    constraints.write_text("\n".join(line for line in pinned if line.startswith("torch==")) + "\n")
    wanted = f"rag-shards[{extras}] @ {release.wheel.as_uri()}" if extras else str(release.wheel)
    own = ("RAG_", "DAGSTER_", "PYTHON")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    (folder / "dagster-home").mkdir()
    variables |= {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "RAG_SOURCE_URI": str(release.source / "examples" / "corpus"),
        "RAG_LAKE_URI": str(release.lake),
        "DAGSTER_HOME": str(folder / "dagster-home"),
    }
    environment = Environment(folder, variables)
    started = time.monotonic()
    environment.run("python", "-m", "pip", "install", "--quiet", "--constraint", str(constraints), wanted)
    seconds = time.monotonic() - started
    environment.run("python", "-m", "pip", "check")
    return environment, seconds


def try_base(environment: Environment) -> None:
    for program in ("rag-assets", "rag-serving"):
        assert "Commands:" in environment.run(program, "--help")
        assert "0." in environment.run(program, "--version")
    for command, extra in ((("rag-assets", "status"), "assets"), (("rag-serving", "ask", "Why?"), "serving")):
        message = environment.run(*command, expect=2)
        assert "MissingExtra: " in message, message
        assert f"needs more packages: pip install 'rag-shards[{extra}]'" in message, message
        assert "Traceback" not in message


def try_client(environment: Environment) -> None:
    seconds = sorted(float(environment.python(_MEASURE_IMPORT)) for _ in range(3))[1]
    print(f"  importing and making a client of a service: {seconds:.2f} s of CPU")
    assert seconds <= IMPORT_SECONDS, seconds


def try_assets(environment: Environment) -> None:
    assert "shards indexed" in environment.run("rag-assets", "backfill", "--here")
    assert "nothing to do" in environment.run("rag-assets", "backfill", "--here")
    environment.python("import importlib.util; assert importlib.util.find_spec('torch') is None")


def try_serving(environment: Environment) -> None:
    answer = json.loads(environment.run("rag-serving", "ask", QUESTION, "--region", "oslo", "--json"))
    assert answer["citations"], answer


def try_llm(environment: Environment) -> None:
    try_serving(environment)
    environment.python("from rag_serving.litellm_calls import import_litellm; assert import_litellm().acompletion")


def try_http(environment: Environment) -> None:
    with served(environment) as url:
        code = f"from rag_serving import RagClient; print(RagClient(base_url={url!r}).ask({QUESTION!r}).citations[0])"
        assert "source=" in environment.python(code)


def try_all(environment: Environment) -> None:
    try_serving(environment)
    environment.run("python", "-m", "dagster", "definitions", "validate", "-m", "rag_assets.definitions")
    environment.python("import litellm, pandas, sentence_transformers, dagster_k8s, dagster_aws")


@contextmanager
def served(environment: Environment) -> Iterator[str]:
    """Run the service and yield its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [environment.folder / "bin" / "rag-serving", "serve", "--open", "--port", str(port)]
    process = subprocess.Popen(command, env=environment.variables, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until:
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


@dataclass(frozen=True)
class Trial:
    """How an extra is tried, and the MiB that it may take."""

    use: Callable[[Environment], None]
    limit: float = float("inf")


TRIALS = {
    "": Trial(try_base),
    "client": Trial(try_client, 60),
    "assets": Trial(try_assets, 1_300),
    "serving": Trial(try_serving, 650),
    "serving,llm": Trial(try_llm, 850),
    "http,client": Trial(try_http),
    "all": Trial(try_all),
}
"""In order: `assets` makes the lake that the others read."""


def main(arguments: list[str]) -> int:
    """Try the extras that the arguments name, or all."""
    with tempfile.TemporaryDirectory(prefix="rag-release-") as scratch:
        release = build(Path(scratch))
        print(f"built {release.wheel.name} ({release.wheel.stat().st_size / 1e6:.1f} MB)")
        table: list[str] = []
        for extras, trial in TRIALS.items():
            if arguments and extras not in arguments and extras != "assets":
                continue
            print(f"trying [{extras}]", flush=True)
            environment, seconds = install(release, extras)
            size = environment.mebibytes()
            packages = len(json.loads(environment.run("python", "-m", "pip", "list", "--format=json")))
            trial.use(environment)
            table.append(f"| {extras or '(none)'} | {size:,.0f} | {packages} | {seconds:.0f} |")
            print(f"  {size:,.0f} MiB, {packages} packages, {seconds:.0f} s")
            assert size <= trial.limit, f"[{extras}] takes {size:.0f} MiB, more than {trial.limit:.0f}"
    print("\n| extras | MiB | packages | seconds to install |\n|---|---|---|---|")
    print("\n".join(table))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
