"""Sphinx settings of the documentation site, which `make docs` builds."""

project = "rag-shards"
copyright = "The rag-shards authors"  # noqa: A001  # Sphinx names it so
highlight_language = "text"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
html_theme = "furo"
html_title = "rag-shards"
myst_heading_anchors = 3
myst_enable_extensions = ["linkify"]
