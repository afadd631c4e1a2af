"""Detect the language of a text. The model is langid's (Lui and Baldwin, ACL 2012), in the package py3langid."""

from functools import cache
from typing import Any, Final

UNKNOWN: Final = ""
_SAMPLE_CHARACTERS: Final = 4_000
_NO_LANGUAGE: Final = "zxx"
"""What the model calls numbers, tables and code."""
_CONFIDENT: Final = 0.5
"""Probability below which the language is unknown: short texts, code, lists of names."""


def detect_language(text: str) -> str:
    """Return the language (ISO 639-1) of the beginning of a text; `UNKNOWN` if it is uncertain."""
    language, probability = _identifier().classify(text[:_SAMPLE_CHARACTERS])
    return language if probability >= _CONFIDENT and language != _NO_LANGUAGE else UNKNOWN


@cache
def _identifier() -> Any:
    import py3langid.langid  # pyright: ignore[reportMissingTypeStubs]

    langid: Any = py3langid.langid
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
