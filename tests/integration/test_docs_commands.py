"""The commands and examples of the documentation, run in reading order."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docs_pages import ROOT, blocks
from tests.pipelines import seed_model

PAGES = [
    "README.md",
    "docs/guides/installation.md",
    "docs/guides/indexing.md",
    "docs/guides/arrivals.md",
    "docs/guides/sqs.md",
    "docs/guides/kafka.md",
    "docs/guides/search.md",
    "docs/guides/python-client.md",
    "docs/guides/semantic-cache.md",
    "docs/guides/http-service.md",
    "docs/guides/dagster-project.md",
    "docs/operations/troubleshooting.md",
    "docs/operations/maintenance.md",
    "docs/operations/scale-out.md",
    "docs/operations/sizing.md",
    "docs/reference/lake-layout.md",
]
CLIENT_PAGES = [f"docs/clients/{name}.md" for name in ("mcp", "openai", "langchain", "llama-index", "haystack")]
"""Pages whose programs ask a service. Blocks marked `py` need packages that the tests do not install."""
BEFORE = {
    "docs/operations/maintenance.md": (
        "mkdir documents/oslo/personnel; cp documents/oslo/people/*.md documents/oslo/personnel; "
        "echo Noon. > documents/oslo/people/lunch.md; rag-assets backfill --here; rm -r documents/oslo/personnel"
    ),
}
"""Changes to the reader's documents that a page assumes."""
SERVER = "rag-serving serve"
INSTALL = """#!/bin/sh
# pip and make need the network and are tested elsewhere; here only their arguments are checked.
exec {python} -m tests.docs_stand_ins {name} "$@"
"""
PYTHON = """#!/bin/sh
if [ "$1 $2" = "-m pip" ]; then shift 2; exec pip "$@"; fi
exec {python} "$@"
"""


@dataclass
class Reader:
    """A reader with a clone of the project, an installed environment, and a shell that keeps exports within a page."""

    clone: Path
    environment: dict[str, str]
    port: int

    def run(self, page: Path) -> None:
        """Run the page's code blocks in order and raise if one fails."""
        state = self.clone / "exports"
        state.write_text("")
        servers: list[subprocess.Popen[bytes]] = []
        try:
            for block in blocks(page):
                if block.language == "sh":
                    before, server, _ = self.adapted(block.text).partition(SERVER)
                    self.shell(f". {state}\n{before}\nexport -p > {state}")
                    if server:
                        command = f". {state}\nexec {SERVER} --port {self.port}"
                        servers.append(subprocess.Popen(["bash", "-ec", command], cwd=self.clone, env=self.environment))
                        self.wait_for_port(servers[-1])
                elif block.language == "python":
                    (self.clone / "example.py").write_text(self.adapted(block.text))
                    self.shell(f". {state}\n{sys.executable} -W ignore example.py")
        finally:
            for process in servers:
                process.terminate()
                process.wait(30)

    def run_client(self, page: Path) -> None:
        """Run the page's Python blocks as one program, with a service that answers from the reader's lake."""
        command = [sys.executable, "-m", "rag_serving.cli", "serve", "--open", "--port", str(self.port)]
        with subprocess.Popen(command, cwd=self.clone, env=self.environment) as server:
            try:
                self.wait_for_port(server)
                program = "\n".join(block.text for block in blocks(page) if block.language == "python")
                program = program.replace("https://rag.example.com", f"http://127.0.0.1:{self.port}")
                (self.clone / "example.py").write_text(program.replace("rag_…", "rag_any"))
                self.shell(f"RAG_SERVICE_KEY=any {sys.executable} -W ignore example.py")
            finally:
                server.terminate()

    def adapted(self, text: str) -> str:
        """Replace the examples' buckets with folders and the port with a free one."""
        text = text.replace("s3://company-docs/incoming", str(self.clone / "documents"))
        text = text.replace("s3://company-lake/rag", str(self.clone / "lake"))
        return text.replace("127.0.0.1:8000", f"127.0.0.1:{self.port}")

    def shell(self, script: str) -> None:
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", script],
            cwd=self.clone,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"

    def wait_for_port(self, process: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until:
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.2)
        raise AssertionError(f"the service does not listen on port {self.port}")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, model_lake: str) -> Reader:
    clone = tmp_path_factory.mktemp("clone")
    for name in ("rag_assets", "rag_serving", "examples", "requirements", "tests"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "workspace.yaml", "Makefile", "README.md"):
        shutil.copy(ROOT / name, clone / name)
    shutil.copytree(ROOT / "examples" / "corpus", clone / "documents")
    (clone / "documents" / "oslo" / "people" / "contract.pdf").write_bytes(b"%PDF-1.7 broken")
    (clone / "lake").mkdir()
    seed_model(model_lake, str(clone / "lake"))
    labelled = [
        {"asked": f"When is holiday {n} paid?", "cached": f"When are holidays {n} paid?", "same": n % 2 == 0}
        for n in range(60)
    ]
    (clone / "pairs.jsonl").write_text("\n".join(map(json.dumps, labelled)))
    stand_ins = clone / "stand-ins"
    stand_ins.mkdir()
    for name, script in {"pip": INSTALL, "make": INSTALL, "python": PYTHON}.items():
        (stand_ins / name).write_text(script.format(python=sys.executable, name=name))
        (stand_ins / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {k: v for k, v in os.environ.items() if not re.match("RAG_|AWS_|DAGSTER_", k)}
    return Reader(
        clone,
        {
            **kept,
            "HOME": str(clone),
            "PATH": f"{stand_ins}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}",
            "PYTHONPATH": str(clone),
            "RAG_SOURCE_URI": str(clone / "documents"),
            "RAG_LAKE_URI": str(clone / "lake"),
            "DAGSTER_HOME": str(clone / ".dagster-rag"),
        },
        port,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_of_the_documentation_work_in_reading_order(reader: Reader) -> None:
    for page in PAGES:
        reader.shell(BEFORE.get(page, ":"))
        reader.run(ROOT / page)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_programs_of_the_client_pages_work(reader: Reader) -> None:
    reader.shell("rag-assets init .dagster-rag; rag-assets backfill --here")
    for page in CLIENT_PAGES:
        reader.run_client(ROOT / page)


def test_every_page_with_commands_is_run() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    with_commands = {page for page in pages if {"sh", "python"} & {block.language for block in blocks(page)}}
    assert with_commands == {ROOT / page for page in [*PAGES, *CLIENT_PAGES]}
