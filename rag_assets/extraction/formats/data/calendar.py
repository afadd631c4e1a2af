"""Calendars (ics): summary, time, place, people and description of each event, task or note."""

import re
from collections.abc import Iterator
from typing import Final

from rag_assets.extraction.decoding import decode, normalise
from rag_assets.extraction.document import BlockKind, DocumentBuilder, ExtractedDocument, one_line

CALENDAR_MEDIA_TYPE: Final = "text/calendar"

_FOLD = re.compile(r"\n[ \t]")
_PROPERTY = re.compile(r"""([\w-]{1,60})((?:;[\w-]{1,60}=(?:"[^"\n]{0,1000}"|[^":;\n]{0,1000}))*):(.*)""")
_PARAMETER = re.compile(r""";([\w-]{1,60})=(?:"([^"]*)"|([^":;]*))""")
_TIME = re.compile(r"(\d{4})(\d\d)(\d\d)(?:T(\d\d)(\d\d)\d\d(Z?))?\Z")
_ESCAPE = re.compile(r"\\([nN\\;,])")
_COMPONENTS: Final = frozenset({"VEVENT", "VTODO", "VJOURNAL"})
_TIMES: Final = {"DTSTART": "Start", "DTEND": "End", "DUE": "Due"}
_SHOWN: Final = {
    "LOCATION": "Place", "ORGANIZER": "Organizer", "ATTENDEE": "Attendee", "STATUS": "Status", "RRULE": "Repeats",
    "CATEGORIES": "Categories",
}  # fmt: skip


def looks_like_calendar(data: bytes) -> bool:
    """Return whether the content starts a calendar."""
    return data[:32].lstrip(b"\xef\xbb\xbf \r\n").upper().startswith(b"BEGIN:VCALENDAR")


def extract_calendar(data: bytes) -> ExtractedDocument:
    """Parse a file; raise ExtractionError if it is too large or its encoding is unknown."""
    document = DocumentBuilder(CALENDAR_MEDIA_TYPE)
    open_components: list[str] = []
    lines: list[str] = []
    summary = description = ""
    for name, parameters, value in _properties(normalise(decode(data))):
        if name == "BEGIN":
            open_components.append(value.upper())
        elif name == "END" and open_components:
            if open_components.pop() in _COMPONENTS:
                document.add(BlockKind.HEADING, one_line(summary), level=2)
                document.add(BlockKind.PARAGRAPH, "\n".join(lines))
                document.add(BlockKind.PARAGRAPH, description)
                summary, description, lines = "", "", []
        elif name == "X-WR-CALNAME":
            document.title = value
        elif not open_components or open_components[-1] not in _COMPONENTS:
            continue  # alarms and time zones inside an event have descriptions of their own
        elif name == "SUMMARY":
            summary = value
        elif name == "DESCRIPTION":
            description = value
        elif name in _TIMES:
            lines.append(f"{_TIMES[name]}: {_time(value, parameters)}")
        elif name in _SHOWN:
            value = parameters.get("CN") or re.sub("^mailto:", "", value, flags=re.IGNORECASE)
            lines.append(f"{_SHOWN[name]}: {one_line(value)}")
    return document.build()


def _properties(source: str) -> Iterator[tuple[str, dict[str, str], str]]:
    for line in _FOLD.sub("", source).split("\n"):
        found = _PROPERTY.match(line)
        if found:
            parameters = {name.upper(): quoted or plain for name, quoted, plain in _PARAMETER.findall(found[2])}
            value = _ESCAPE.sub(lambda escape: "\n" if escape[1] in "nN" else escape[1], found[3])
            yield found[1].upper(), parameters, value.strip()


def _time(value: str, parameters: dict[str, str]) -> str:
    found = _TIME.match(value)
    if found is None:
        return one_line(value)
    year, month, day, hour, minute, utc = found.groups()
    zone = "UTC" if utc else parameters.get("TZID", "")
    return f"{year}-{month}-{day} {hour}:{minute} {zone}".rstrip() if hour else f"{year}-{month}-{day}"
