"""The demo behind `make demo`: index the sample corpus with Dagster, ask questions, and ask them again.

It writes only to the folder DEMO_HOME (default: .demo in the repository).
"""

import os
import subprocess
import sys
from pathlib import Path

from rag_assets.cli.init import write_instance

ROOT = Path(__file__).resolve().parent.parent

QUESTIONS = [
    ("How many weeks of parental leave are on full pay?", ["oslo"]),
    ("How many weeks of parental leave are on full pay?", ["lisbon"]),
    ("What was the cause of the Brattholm outage in November 2023?", None),
]
AGAIN = [
    (
        "what was the cause of the Brattholm outage in November 2023",
        None,
        "the same question, typed differently",
    ),
    ("What caused the Brattholm outage in November 2023?", None, "the same question in other words"),
]


def main() -> int:
    """Run the demo; returns the exit status."""
    home = Path(os.environ.get("DEMO_HOME", ROOT / ".demo")).resolve()
    dagster_home = home / "dagster"
    write_instance(dagster_home)
    os.environ["DAGSTER_HOME"] = str(dagster_home)
    os.environ["RAG_SOURCE_URI"] = os.environ.get("RAG_SOURCE_URI") or str(ROOT / "examples" / "corpus")
    os.environ["RAG_LAKE_URI"] = os.environ.get("RAG_LAKE_URI") or str(home / "lake")
    print("── Indexing the sample corpus (rag-assets backfill --here)", flush=True)
    indexed = subprocess.run([sys.executable, "-m", "rag_assets.cli", "backfill", "--here"], check=False)
    if indexed.returncode:
        return indexed.returncode

    from rag_serving import RagClient
    from rag_serving.cli.main import render

    print("\n── Asking (rag_serving.RagClient)")
    with RagClient.from_env() as rag:
        rag.search("warm up")  # load the model and open the tables, so that the times below are those of a warm server
        for question, regions in QUESTIONS:
            print(f"\n? {question}" + (f"   [{', '.join(regions)}]" if regions else ""))
            print(render(rag.ask(question, regions=regions)))
        for question, regions, note in AGAIN:
            print(f"\n? {question}   ({note})")
            print(render(rag.ask(question, regions=regions)))
    print("\nOpen the Dagster UI:       make dev")
    print("Ask on the command line:   make ask Q='What is the domestic travel per-diem?'")
    return 0


if __name__ == "__main__":
    sys.exit(main())
