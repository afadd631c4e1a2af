"""Rules of the package layout; `python -m tests.structure` prints the figures."""

from __future__ import annotations

import pytest

from tests.structure import cycle, entries, import_graph, longest_chain


def test_there_are_no_import_cycles_even_through_lazy_or_type_checking_imports() -> None:
    assert cycle(import_graph()) == []


@pytest.mark.parametrize(("package", "longest"), [("rag_assets", 17), ("rag_serving", 10)])
def test_a_package_has_few_entries_and_no_long_import_chain(package: str, longest: int) -> None:
    assert len(entries(package)) <= 17
    assert len(longest_chain(import_graph(lazy=False), package)) <= longest
