"""Lightweight markup languages: their structure, and what is left out."""

from __future__ import annotations

import pytest

from rag_assets.extraction.registry import heading_text
from tests.documents import extract, pieces

MDX = b"""---
title: Guide
---
import Tabs from "./tabs"
export const rates = {
  oslo: 44,
}

# Per diem

{/* TODO */}
<Tabs>
  <Tab title="Norway">
    Import duties are 44 euros.

    - one
  </Tab>
</Tabs>

```js
import x from "y"
<Tab />
```
"""


def test_mdx_is_markdown_without_module_code_and_tags_outside_code() -> None:
    assert extract(MDX, "a.mdx").title == "Guide"
    assert pieces(MDX, "a.mdx") == [
        ("heading", "# Per diem"),
        ("paragraph", "Norway\nImport duties are 44 euros."),
        ("list", "- one"),
        ("code", '```js\nimport x from "y"\n<Tab />\n```'),
    ]


def test_a_sentence_that_begins_with_import_is_kept_in_mdx() -> None:
    assert extract(b"Customs:\nimport duties are 4 euros.", "a.mdx").text == "Customs:\nimport duties are 4 euros."


ASCIIDOC = b"""= Travel
:toc:
// hidden

.Rules
* Book early
** By train
NOTE: Keep https://example.org/r[receipts] and <<per-diem,the rates>>.

////
also hidden
////
[source,python]
----
# code
----

[cols="1,2"]
|===
|City |Rate

|Oslo
|44 a|euros
|===
include::other.adoc[]
"""


def test_asciidoc_has_headings_lists_code_and_tables_without_comments_and_includes() -> None:
    assert extract(ASCIIDOC, "a.adoc").title == "Travel"
    assert pieces(ASCIIDOC, "a.adoc") == [
        ("heading", "# Travel"),
        ("paragraph", "Rules"),
        ("list", "- Book early\n   - By train\nNOTE: Keep receipts and the rates."),
        ("code", "```python\n# code\n```"),
        ("table", "| City | Rate |\n| --- | --- |\n| Oslo | 44 |\n| euros |  |"),
    ]


RST = b"""======
Travel
======

.. _target:

Rules
=====
See :ref:`the rates <rates>` and `the site <https://example.org>`_::

    $ book train

.. note:: Keep receipts.
   For years.

.. code-block:: python
   :linenos:

   # code

.. comment
   hidden

.. image:: a.png
   :alt: A map

+------+------+
| City | Rate |
+======+======+
| Oslo | 44   |
+------+------+

====  ====
City  Rate
====  ====
Bonn  30
====  ====
"""


def test_rst_has_headings_directives_code_and_both_kinds_of_tables_without_comments() -> None:
    assert pieces(RST, "a.rst") == [
        ("heading", "# Travel"),
        ("heading", "## Rules"),
        ("paragraph", "See the rates and the site:"),
        ("code", "```\n$ book train\n```"),
        ("paragraph", "Note: Keep receipts.\nFor years."),
        ("code", "```python\n# code\n```"),
        ("paragraph", "A map"),
        ("table", "| City | Rate |\n| --- | --- |\n| Oslo | 44 |"),
        ("table", "| City | Rate |\n| --- | --- |\n| Bonn | 30 |"),
    ]


ORG = b"""#+TITLE: Travel
#+OPTIONS: toc:nil
* TODO Rules :finance:
:PROPERTIES:
:ID: hidden
:END:
# hidden
See [[https://example.org][the site]].
| City | Rate |
|------+------|
| Oslo | 44   |
#+BEGIN_SRC python
# code
#+END_SRC
"""


def test_org_has_title_headings_tables_and_code_without_drawers_and_comments() -> None:
    assert extract(ORG, "a.org").title == "Travel"
    assert pieces(ORG, "a.org") == [
        ("heading", "# TODO Rules"),
        ("paragraph", "See the site."),
        ("table", "| City | Rate |\n| --- | --- |\n| Oslo | 44 |"),
        ("code", "```python\n# code\n```"),
    ]


TEX = rb"""\documentclass{article}
\title{Travel \& more}
\newcommand{\hidden}{x}
\begin{document}
\maketitle
\section{Rules} % hidden
Travel with \textbf{care} in Z\"urich~100\% \cite{hidden}.\footnote{By train.}
\begin{itemize}
\item Book early
\end{itemize}
\begin{tabular}{l|r}
City & Rate \\ \hline
Oslo & 44 \\
\end{tabular}
\begin{verbatim}
% code {}
\end{verbatim}
\end{document}
hidden
"""


def test_tex_has_title_headings_lists_tables_and_code_without_preamble_and_commands() -> None:
    assert extract(TEX, "a.tex").title == "Travel & more"
    assert pieces(TEX, "a.tex") == [
        ("heading", "## Rules"),
        ("paragraph", "Travel with care in Zürich 100% . (By train.)"),
        ("list", "- Book early"),
        ("table", "| City | Rate |\n| --- | --- |\n| Oslo | 44 |"),
        ("code", "```\n% code {}\n```"),
    ]


@pytest.mark.parametrize(
    ("key", "source"),
    [("a.mdx", b"# *New* staff"), ("a.adoc", b"== *New* staff"), ("a.rst", b"*New* staff\n==========="),
     ("a.org", b"* *New* staff"), ("a.tex", rb"\section{\emph{New} staff}")],
)  # fmt: skip
def test_the_heading_text_of_each_language_has_no_markup(key: str, source: bytes) -> None:
    document = extract(source, key)
    assert heading_text(document, document.blocks[0]) == "New staff"


@pytest.mark.parametrize("key", ["a.mdx", "a.adoc", "a.rst", "a.org", "a.tex"])
@pytest.mark.parametrize(
    "source",
    [
        "----\nwords", "|===\n|words", "#+BEGIN_SRC\nwords", "\\begin{verbatim}\nwords", "```\nwords",
        "x::\n\n  words", ".. note::\n   words",
    ],
)  # fmt: skip
def test_text_of_a_block_that_is_not_closed_is_kept(key: str, source: str) -> None:
    assert "words" in extract(source.encode(), key).text


def test_the_label_of_an_mdx_component_and_its_text_are_separate_words() -> None:
    document = extract(b'<Tab label="Linux">Download</Tab>\n\nMore.\n', "setup.mdx")
    assert document.text.startswith("Linux Download")
