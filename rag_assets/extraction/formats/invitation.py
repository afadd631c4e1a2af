"""Calendar invitations inside e-mail messages (iCalendar): subject, time, place and description of each event."""

import re
from collections.abc import Iterator
from typing import Final

_MAX_EVENTS: Final = 200
_FOLD = re.compile(r"\r?\n[ \t]")
# Name, parameters and value; the parts of the pattern cannot match the same characters.
_PROPERTY = re.compile(r'([A-Za-z-]+)((?:;[^:;"]*(?:"[^"]*"[^:;"]*)*)*):(.*)')
_ESCAPED = re.compile(r"\\([nN,;\\])")
_ZONE = re.compile(r'TZID="?([^":;]+)', re.IGNORECASE)
_NAME = re.compile(r'CN=(?:"([^"]+)|([^":;]+))', re.IGNORECASE)
_MOMENT = re.compile(r"(\d{4})(\d\d)(\d\d)(?:T(\d\d)(\d\d)(?:\d\d)?(Z?))?\Z")
_COMPONENTS: Final = frozenset({"VEVENT", "VTODO"})


def events(calendar: str) -> Iterator[str]:
    """Yield the text of each event, a property per line, and at the end its description."""
    found: dict[str, str] | None = None
    depth = count = 0
    cancelled = False
    for line in _FOLD.sub("", calendar).splitlines():
        match = _PROPERTY.match(line)
        if match is None:
            continue
        name, parameters, value = match[1].upper(), match[2], match[3].strip()
        if name == "METHOD":
            cancelled = value.upper() == "CANCEL"
        elif name == "BEGIN" and found is None and value.upper() in _COMPONENTS:
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


def _shown(name: str, parameters: str, value: str) -> str:
    if name in ("DTSTART", "DTEND", "DUE"):
        return _moment(parameters, value)
    if name == "ORGANIZER":
        person = _NAME.search(parameters)
        return person[1] or person[2] if person else value.removeprefix("mailto:").removeprefix("MAILTO:")
    return _ESCAPED.sub(lambda match: "\n" if match[1] in "nN" else match[1], value)


def _moment(parameters: str, value: str) -> str:
    """Return `20260301T100000` as `2026-03-01 10:00`, with its time zone."""
    match = _MOMENT.match(value)
    if match is None:
        return value
    date = f"{match[1]}-{match[2]}-{match[3]}"
    if match[4] is None:
        return date
    zone = _ZONE.search(parameters)
    name = "UTC" if match[6] else zone[1] if zone else ""
    return f"{date} {match[4]}:{match[5]} {name}".strip()


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
