"""What the layout promises to a reader; `python -m tests.structure` prints the figures."""

from __future__ import annotations

import pytest

from tests.structure import cycle, entries, import_graph, longest_chain


def test_no_import_closes_a_cycle_not_even_one_inside_a_function_or_for_types() -> None:
    assert cycle(import_graph()) == []


@pytest.mark.parametrize(("package", "longest"), [("rag_assets", 17), ("rag_serving", 10)])
def test_a_package_has_few_entries_and_no_long_chain_of_imports(package: str, longest: int) -> None:
    assert len(entries(package)) <= 17
    assert len(longest_chain(import_graph(lazy=False), package)) <= longest
