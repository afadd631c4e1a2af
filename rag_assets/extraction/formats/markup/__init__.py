"""Lightweight markup languages. Each module rewrites its language as Markdown, whose structure `markdown` reads."""
