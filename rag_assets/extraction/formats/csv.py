"""Delimited text (csv, tsv): one table with a line per row.

The delimiter is the character that splits the first lines most evenly: Excel writes semicolons in locales with a
decimal comma.
"""

import csv
import io
import re
from collections import Counter
from itertools import islice
from typing import Final

from rag_assets.extraction.decoding import decode, normalise
from rag_assets.extraction.document import BlockKind, DocumentBuilder, ExtractedDocument, table_row

CSV_MEDIA_TYPE: Final = "text/csv"

_DELIMITERS: Final = (",", ";", "\t", "|")
_SAMPLE_CHARACTERS: Final = 64 * 1024
_SAMPLE_ROWS: Final = 100
# Excel's line before the header that sets the delimiter.
_NAMED = re.compile(r"""\A"?sep=([^\w\s"]|\t)"?\r?\n""", re.IGNORECASE)


def extract_csv(data: bytes) -> ExtractedDocument:
    """Parse a file; raise ExtractionError if it is too large or its encoding is unknown."""
    text = normalise(decode(data))
    named = _NAMED.match(text)
    text = text[named.end() :] if named else text
    delimiter = named[1] if named else delimiter_of(text)
    document = DocumentBuilder(CSV_MEDIA_TYPE)
    try:
        rows = [table_row(row) for row in csv.reader(io.StringIO(text), delimiter=delimiter)]
    except csv.Error:
        # An unclosed quote would swallow the rest of the file, so ignore quoting.
        rows = [table_row(line.split(delimiter)) for line in text.split("\n")]
    document.add(BlockKind.TABLE, "\n".join(filter(None, rows)))
    return document.build()


def delimiter_of(text: str) -> str:
    """Return the delimiter with the most rows of one width, then the fewest quotes inside fields, then the widest rows.

    A comma if no delimiter gives rows of several fields.
    """
    sample = text[:_SAMPLE_CHARACTERS]
    if len(sample) < len(text):
        sample = sample[: sample.rfind("\n") + 1] or sample
    best, found = (0, 0, 0), ","
    for delimiter in _DELIMITERS:
        try:
            rows = list(islice(csv.reader(io.StringIO(sample), delimiter=delimiter), _SAMPLE_ROWS))
        except csv.Error:
            continue
        widths = Counter(len(row) for row in rows if len(row) > 1)
        width, count = max(widths.items(), key=lambda item: (item[1], item[0]), default=(0, 0))
        # Quotes remain inside fields if they protect another delimiter.
        quotes = sum(field.count('"') for row in rows for field in row)
        if count and (count, -quotes, width) > best:
            best, found = (count, -quotes, width), delimiter
    return found
