"""Shared by all benchmarks: command line, tables, JSON files, and a description of the machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="smoke test: small input, one run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    return parser


def machine() -> dict[str, Any]:
    """Describe the machine, on which the figures depend."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    name = next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")), "")
    flags = sorted(flag for flag in ("amx_bf16", "avx512_bf16", "avx512_vnni", "avx2") if flag in text)
    return {"cpu": name or platform.processor(), "cores": os.cpu_count(), "flags": flags, "system": platform.platform()}


def show(title: str, rows: Sequence[Mapping[str, object]], json_file: Path | None, **more: object) -> None:
    """Print the rows as a table, and write them and `more` to the JSON file, if any."""
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(f"{value:,.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=160).print(table)
    if json_file is not None:
        figures = {"benchmark": title, "machine": machine(), "rows": list(rows), **more}
        json_file.write_text(json.dumps(figures, indent=1, default=str) + "\n")


@contextmanager
def peak_memory() -> Generator[list[int]]:
    """Sample the resident bytes of this process and its descendants every half second."""
    me = psutil.Process()
    sums: list[int] = []
    over = threading.Event()

    def resident(processes: Iterator[psutil.Process]) -> int:
        total = 0
        for process in processes:
            try:
                total += process.memory_info().rss
            except psutil.Error:  # it has exited in the meantime
                continue
        return total

    def look() -> None:
        while not over.wait(0.5):
            sums.append(resident(iter([me, *me.children(recursive=True)])))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield sums
    finally:
        over.set()
        thread.join()
