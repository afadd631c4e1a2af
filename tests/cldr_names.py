"""Write the names of months, days, units and currencies for the guards of the answer cache, from the Unicode CLDR.

python -m tests.cldr_names

They are stored in the package because Babel, which has them, would add 32 MB to an installation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from babel import Locale
from babel.numbers import get_currency_name, get_currency_symbol
from babel.units import format_unit

from rag_serving.cache.guards import lexicon

FILE = Path(lexicon.__file__).parent / "data" / "cldr.json"
SOURCE = "Unicode CLDR, https://cldr.unicode.org, Unicode License v3"

# Names that are other words in one of the languages, or parts of dates.
EXCLUDED_UNITS = frozenset(
    ["in", "t", "v", "an", "time", "once", "pie", "pies", "livre", "livres", "unse", "unser", "年", "日"]
)
EXCLUDED_MONTHS = frozenset(["set", "out", "des", "ago", "dic", "ene", "abr", "fev", "avr"])
CURRENCIES = ("usd", "eur", "gbp", "jpy", "nok", "sek", "dkk", "chf", "inr")
UNITS = {
    "%": "concentr-percent",
    "ms": "duration-millisecond",
    "s": "duration-second",
    "min": "duration-minute",
    "h": "duration-hour",
    "d": "duration-day",
    "week": "duration-week",
    "month": "duration-month",
    "quarter": "duration-quarter",
    "year": "duration-year",
    "mm": "length-millimeter",
    "cm": "length-centimeter",
    "m": "length-meter",
    "km": "length-kilometer",
    "in": "length-inch",
    "ft": "length-foot",
    "mi": "length-mile",
    "mg": "mass-milligram",
    "g": "mass-gram",
    "kg": "mass-kilogram",
    "lb": "mass-pound",
    "oz": "mass-ounce",
    "t": "mass-tonne",
    "ml": "volume-milliliter",
    "l": "volume-liter",
    "gal": "volume-gallon",
    "°c": "temperature-celsius",
    "°f": "temperature-fahrenheit",
    "kb": "digital-kilobyte",
    "mb": "digital-megabyte",
    "gb": "digital-gigabyte",
    "tb": "digital-terabyte",
    "kw": "power-kilowatt",
    "kwh": "energy-kilowatt-hour",
    "v": "electric-volt",
}
"""Canonical names of units, and their identifiers in CLDR."""


def names() -> dict[str, object]:
    """Return the content of the file."""
    return {
        "source": SOURCE,
        "currencies": list(CURRENCIES),
        "months": months(),
        "weekdays": weekdays(),
        "units": units(),
    }


def months() -> dict[str, int]:
    found: dict[str, int] = {}
    for locale in map(Locale.parse, lexicon.LANGUAGES):
        for context in ("format", "stand-alone"):
            for width in ("abbreviated", "wide"):
                of_locale: Mapping[int, str] = locale.months[context][width]
                found |= {name.casefold().rstrip("."): number for number, name in of_locale.items()}
    # Japanese months are numbers, which have their own patterns.
    return {name: month for name, month in found.items() if name not in EXCLUDED_MONTHS and name[0].isalpha()}


def weekdays() -> dict[str, int]:
    found: dict[str, int] = {}
    for locale in map(Locale.parse, lexicon.LANGUAGES):
        of_locale: Mapping[int, str] = locale.days["stand-alone"]["wide"]
        found |= {name.casefold(): number + 1 for number, name in of_locale.items()}
    return found


def units() -> dict[str, str]:
    found: dict[str, str] = {}
    lengths: list[tuple[str, Literal["long", "short"]]] = [
        ("en", "short"),
        *((name, "long") for name in lexicon.LANGUAGES),
    ]
    for unit, identifier in UNITS.items():
        for language, length in lengths:
            shown = [format_unit(count, identifier, length, locale=language) for count in (1, 2)]
            found.update((re.sub(r"[\d.\s]+", " ", name).strip().casefold(), unit) for name in shown)
    for unit in CURRENCIES:
        code = unit.upper()
        for language in lexicon.LANGUAGES:
            plural = [get_currency_name(code, count, language) for count in (1, 2)]
            found.update((name.casefold(), unit) for name in (code, get_currency_symbol(code, language), *plural))
    return {name: unit for name, unit in found.items() if " " not in name and name not in EXCLUDED_UNITS}


if __name__ == "__main__":
    FILE.write_text(json.dumps(names(), ensure_ascii=False, indent=1) + "\n", "utf-8")
    print(f"wrote {FILE}")
