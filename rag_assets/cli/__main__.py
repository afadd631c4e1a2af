"""Run the command line with `python -m rag_assets.cli`."""

from rag_assets.cli.main import main

main(prog_name="rag-assets")
