"""Entry point of `python -m rag_serving.cli`."""

from rag_serving.cli.main import main

main(prog_name="rag-serving")
