"""Print figures of the package layout: the top-level entries of each package and the longest import chain.

python -m tests.structure
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("rag_assets", "rag_serving")
Graph = dict[str, set[str]]


def import_graph(*, lazy: bool = True) -> Graph:
    """Return the modules that each module imports; without `lazy`, only those loaded together with it."""
    paths = {module_name(path): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    return {name: _imports(ast.parse(path.read_text()), paths.keys(), lazy) - {name} for name, path in paths.items()}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(tree: ast.Module, known: set[str] | object, lazy: bool) -> set[str]:
    assert hasattr(known, "__contains__")
    found: set[str] = set()
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in known else node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return {name for name in found if name in known}


def cycle(graph: Graph) -> list[str]:
    """Return the modules of an import cycle, or an empty list."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def longest_chain(graph: Graph, package: str) -> list[str]:
    """Return the longest import chain within the package."""

    @cache
    def chain(module: str) -> tuple[str, ...]:
        tails = [chain(other) for other in graph[module] if other.split(".")[0] == package]
        return (module, *max(tails, key=len, default=()))

    return list(max((chain(module) for module in graph if module.split(".")[0] == package), key=len))


def entries(package: str) -> list[str]:
    """Return the top-level modules and packages of the package."""
    return sorted(
        path.stem
        for path in (ROOT / package).iterdir()
        if (path / "__init__.py").exists() or (path.suffix == ".py" and path.stem != "__init__")
    )


def main() -> None:
    everything, loaded = import_graph(), import_graph(lazy=False)
    found = cycle(everything)
    print("import cycle:", " -> ".join(found) if found else "none, including imports inside functions and for types")
    for package in PACKAGES:
        chain = longest_chain(loaded, package)
        print(f"{package}: {len(entries(package))} top-level entries; longest chain of {len(chain)} modules:")
        print(f"  {' -> '.join(name.removeprefix(f'{package}.') for name in chain)}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
