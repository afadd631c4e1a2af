"""The guide to adding a file format works as written."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rag_assets.extraction import registry
from tests.docs_pages import ROOT, blocks


def test_the_format_of_the_guide_is_read_after_the_changes_that_it_describes(monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs/development/adding-a-format.md"
    parser, line, *_ = (block.text for block in blocks(page) if block.language in ("py", "text"))
    name = "rag_assets.extraction.formats.toy"
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    exec(parser, vars(sys.modules[name]))  # noqa: S102  # our own page
    following = re.search(r'before `(Format\("\w+", …\))`', page.read_text())
    assert following is not None
    source = Path(registry.__file__).read_text()
    before, place, after = source.partition(f"    {following[1].partition('…')[0]}")
    assert place
    changed = ModuleType("registry_with_toy")
    monkeypatch.setitem(sys.modules, changed.__name__, changed)
    vars(changed)["__package__"] = registry.__package__
    imports = f"from {name} import TOY_MEDIA_TYPE, extract_toy\n"
    exec(before.replace("\nfrom typing", f"\n{imports}from typing", 1) + line + place + after, vars(changed))  # noqa: S102
    (part,) = changed.read_object(b"Winches\nGrease them.", "oslo/people/winches.toy").parts
    assert (part.document.media_type, part.document.title) == ("text/x-toy", "Winches")
