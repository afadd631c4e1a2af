"""Calendars (ics): summary, time, place, people and description of each event, task or note; invitations by e-mail."""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from rag_assets.extraction.decoding import decode, normalise
from rag_assets.extraction.document import BlockKind, DocumentBuilder, ExtractedDocument, one_line

CALENDAR_MEDIA_TYPE: Final = "text/calendar"

_FOLD = re.compile(r"\n[ \t]")
_PROPERTY = re.compile(r"""([\w-]{1,60})((?:;[\w-]{1,60}=(?:"[^"\n]{0,1000}"|[^":;\n]{0,1000}))*):(.*)""")
_PARAMETER = re.compile(r""";([\w-]{1,60})=(?:"([^"]*)"|([^":;]*))""")
_TIME = re.compile(r"(\d{4})(\d\d)(\d\d)(?:T(\d\d)(\d\d)(?:\d\d)?(Z?))?\Z")
_ESCAPE = re.compile(r"\\([nN\\;,])")
_COMPONENTS: Final = frozenset({"VEVENT", "VTODO", "VJOURNAL"})
_INVITED: Final = frozenset({"VEVENT", "VTODO"})
_MAX_EVENTS: Final = 200
"""Of the invitations in one message."""
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
            lines.append(f"{_TIMES[name]}: {_moment(value, parameters)}")
        elif name in _SHOWN:
            value = parameters.get("CN") or re.sub("^mailto:", "", value, flags=re.IGNORECASE)
            lines.append(f"{_SHOWN[name]}: {one_line(value)}")
    return document.build()


def _properties(source: str) -> Iterator[tuple[str, dict[str, str], str]]:
    """Yield the name, the parameters and the value of each property; `source` has plain line feeds."""
    for line in _FOLD.sub("", source).split("\n"):
        found = _PROPERTY.match(line)
        if found:
            parameters = {name.upper(): quoted or plain for name, quoted, plain in _PARAMETER.findall(found[2])}
            value = _ESCAPE.sub(lambda escape: "\n" if escape[1] in "nN" else escape[1], found[3])
            yield found[1].upper(), parameters, value.strip()


def _moment(value: str, parameters: Mapping[str, str]) -> str:
    """Return `20260301T100000` as `2026-03-01 10:00`, with its time zone."""
    found = _TIME.match(value)
    if found is None:
        return one_line(value)
    year, month, day, hour, minute, utc = found.groups()
    zone = "UTC" if utc else parameters.get("TZID", "")
    return f"{year}-{month}-{day} {hour}:{minute} {zone}".rstrip() if hour else f"{year}-{month}-{day}"


def events(calendar: str) -> Iterator[str]:
    """Yield the text of each event in an invitation, a property per line, and at the end its description."""
    found: dict[str, str] | None = None
    depth = count = 0
    cancelled = False
    for name, parameters, value in _properties("\n".join(calendar.splitlines())):
        if name == "METHOD":
            cancelled = value.upper() == "CANCEL"
        elif name == "BEGIN" and found is None and value.upper() in _INVITED:
            found, depth = {}, 0
        elif name == "BEGIN":
            depth += 1
        elif name == "END" and depth:
            depth -= 1
        elif name == "END" and found is not None:
            yield _event_text(found, cancelled)
            found = None
            count += 1
            if count == _MAX_EVENTS:
                return
        elif found is not None and not depth:
            found.setdefault(name, _shown(name, parameters, value))


def _shown(name: str, parameters: Mapping[str, str], value: str) -> str:
    if name in ("DTSTART", "DTEND", "DUE"):
        return _moment(value, parameters)
    if name == "ORGANIZER":
        return parameters.get("CN") or re.sub("^mailto:", "", value, flags=re.IGNORECASE)
    return value


def _event_text(found: dict[str, str], cancelled: bool) -> str:
    kind = "Cancelled" if cancelled or found.get("STATUS", "").upper() == "CANCELLED" else "Invitation"
    end = found.get("DTEND") or found.get("DUE")
    moments = filter(None, (found.get("DTSTART"), end))
    lines = (
        (kind, found.get("SUMMARY")),
        ("When", " to ".join(moments)),
        ("Where", found.get("LOCATION")),
        ("Organizer", found.get("ORGANIZER")),
    )
    shown = [f"{name}: {' '.join(value.split())}" for name, value in lines if value]
    return "\n".join((*shown, found.get("DESCRIPTION", ""))).strip()
