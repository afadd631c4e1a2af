"""Subtitles and transcripts (vtt, srt): what is said, by whom, without time codes."""

import html
import re
from collections.abc import Iterator
from functools import partial
from typing import Final

from rag_assets.extraction.decoding import decode, normalise
from rag_assets.extraction.document import BlockKind, DocumentBuilder, ExtractedDocument, one_line

VTT_MEDIA_TYPE: Final = "text/vtt"
SRT_MEDIA_TYPE: Final = "application/x-subrip"

_TIME_CODES = re.compile(r"[ \t]*(?:\d{1,4}:)?\d{1,2}:\d{2}[.,]\d{1,3}[ \t]*-->")
_VOICE = re.compile(r"<v(?:\.[^\s<>]{0,200})?[ \t]+([^<>]{1,200})>")
_MARKUP = re.compile(r"</?[A-Za-z0-9][^<>]{0,200}>|\{\\[^{}]{0,100}\}")
_SENTENCE_END: Final = (".", "!", "?", "。", "！", "？", "…")
_PARAGRAPH: Final = 400
"""Characters after which a speaker's paragraph ends with the sentence."""
_LONG_PARAGRAPH: Final = 2_000


def looks_like_vtt(data: bytes) -> bool:
    """Return whether the content starts a WebVTT file."""
    return data.removeprefix(b"\xef\xbb\xbf")[:7] in (b"WEBVTT", b"WEBVTT ", b"WEBVTT\n", b"WEBVTT\r", b"WEBVTT\t")


def _extract(data: bytes, media_type: str) -> ExtractedDocument:
    document = DocumentBuilder(media_type)
    speaker = previous = ""
    said: list[str] = []
    length = 0
    for voice, line in _lines(normalise(decode(data))):
        # Live captions repeat the last line above the new one.
        if (voice, line) == (speaker, previous):
            continue
        ended = length > _PARAGRAPH and previous.endswith(_SENTENCE_END)
        if voice != speaker or ended or length > _LONG_PARAGRAPH:
            document.add(BlockKind.PARAGRAPH, _paragraph(speaker, said))
            said, length = [], 0
        speaker, previous = voice, line
        said.append(line)
        length += len(line)
    document.add(BlockKind.PARAGRAPH, _paragraph(speaker, said))
    return document.build()


extract_vtt = partial(_extract, media_type=VTT_MEDIA_TYPE)
extract_srt = partial(_extract, media_type=SRT_MEDIA_TYPE)


def _paragraph(speaker: str, said: list[str]) -> str:
    text = " ".join(said)
    return f"{speaker}: {text}" if speaker and text else text


def _lines(source: str) -> Iterator[tuple[str, str]]:
    """Yield speaker and text of the lines below time codes; a blank line ends a cue."""
    in_cue = False
    voice = ""
    for line in source.split("\n"):
        if _TIME_CODES.match(line):
            in_cue, voice = True, ""
        elif not line.strip():
            in_cue = False
        elif in_cue:
            found = _VOICE.search(line)
            voice = one_line(html.unescape(found[1])) if found else voice
            words = one_line(html.unescape(_MARKUP.sub("", line)), len(line))
            if words:
                yield voice, words
