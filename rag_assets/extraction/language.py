"""Detect the language of a text. The model is langid's (Lui and Baldwin, ACL 2012), in the package py3langid."""

import re
from functools import cache
from typing import Any, Final

UNKNOWN: Final = ""
_SAMPLE_CHARACTERS: Final = 4_000
_NO_LANGUAGE: Final = "zxx"
"""What the model calls numbers, tables and code."""
_WORDS_OF_A_SENTENCE: Final = 4
_UNSPACED: Final = re.compile("[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
"""Scripts that are their language: Thai, Lao, Japanese, Chinese, Korean."""
_CONFIDENT: Final = 0.5
"""Probability below which the language is unknown: short texts, code, lists of names."""


def detect_language(text: str) -> str:
    """Return the language (ISO 639-1) of the beginning of a text; `UNKNOWN` if it is uncertain.

    Rows of tables count only by their longer cells, because names and codes say nothing about a language.
    """
    lines = text[: 4 * _SAMPLE_CHARACTERS].splitlines()
    prose = [part for line in lines for part in (_sentences_of(line) if "|" in line else [line])]
    sample = "\n".join(prose)[:_SAMPLE_CHARACTERS]
    if not sample.strip():
        return UNKNOWN
    language, probability = _identifier().classify(sample)
    return language if probability >= _CONFIDENT and language != _NO_LANGUAGE else UNKNOWN


def _sentences_of(row: str) -> list[str]:
    """Return the cells of a row that are sentences, or may be."""
    cells = (cell.strip() for cell in row.split("|"))
    return [cell for cell in cells if len(cell.split()) >= _WORDS_OF_A_SENTENCE or _UNSPACED.search(cell)]


@cache
def _identifier() -> Any:
    import py3langid.langid  # pyright: ignore[reportMissingTypeStubs]

    langid: Any = py3langid.langid
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
