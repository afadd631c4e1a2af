"""Old Word documents and PowerPoint presentations (doc, ppt), converted by LibreOffice where it is installed.

The program runs in the process group of its parser process, so whatever ends that process ends the program, too, and it
has the same limits on memory and CPU time.
"""

import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from rag_assets.extraction.document import ExtractedDocument
from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.formats.docx import extract_docx
from rag_assets.extraction.formats.legacy.ole import POWERPOINT, WORD, stream_of
from rag_assets.extraction.formats.pptx import extract_pptx

DOC_MEDIA_TYPE: Final = "application/msword"
PPT_MEDIA_TYPE: Final = "application/vnd.ms-powerpoint"

MAX_FILE_BYTES: Final = 512 * 1024 * 1024
"""Limit of a file that the program may write. Parsers themselves may write none."""
_KEPT_VARIABLES: Final = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH")
# No macros, and nothing from outside the document.
_PROFILE: Final = """<?xml version="1.0" encoding="UTF-8"?>
<oor:items xmlns:oor="http://openoffice.org/2001/registry">
<item oor:path="/org.openoffice.Office.Common/Security/Scripting"><prop oor:name="MacroSecurityLevel" oor:op="fuse">
<value>3</value></prop><prop oor:name="DisableMacrosExecution" oor:op="fuse"><value>true</value></prop>
<prop oor:name="DisableActiveContent" oor:op="fuse"><value>true</value></prop>
<prop oor:name="BlockUntrustedRefererLinks" oor:op="fuse"><value>true</value></prop></item>
</oor:items>
"""


def converter() -> str | None:
    """Return the path of LibreOffice's program; None if it is not installed."""
    return shutil.which("soffice") or shutil.which("libreoffice")


def can_convert(data: bytes, stream: str) -> bool:
    """Return whether the content is an old file with that stream, and LibreOffice is installed."""
    return stream_of(data) == stream and converter() is not None


looks_like_doc = partial(can_convert, stream=WORD)
looks_like_ppt = partial(can_convert, stream=POWERPOINT)


def _extract(
    data: bytes, suffix: str, media_type: str, extract: Callable[[bytes], ExtractedDocument]
) -> ExtractedDocument:
    """Convert a file and parse the result; raise ExtractionError(malformed) if LibreOffice cannot convert it."""
    return replace(extract(_converted(data, suffix)), media_type=media_type)


extract_doc = partial(_extract, suffix="docx", media_type=DOC_MEDIA_TYPE, extract=extract_docx)
extract_ppt = partial(_extract, suffix="pptx", media_type=PPT_MEDIA_TYPE, extract=extract_pptx)


def _converted(data: bytes, suffix: str) -> bytes:
    program = converter()
    with _may_write_files(), tempfile.TemporaryDirectory(prefix="rag-office-") as folder:
        home = Path(folder)
        profile = home / "profile" / "user"
        profile.mkdir(parents=True)
        (profile / "registrymodifications.xcu").write_text(_PROFILE)
        source, target = home / "document", home / "out" / f"document.{suffix}"
        source.write_bytes(data)
        command = [
            *(str(program), "--headless", "--norestore", "--nologo", "--nolockcheck"),
            f"-env:UserInstallation={profile.parent.as_uri()}",
            *("--convert-to", suffix, "--outdir", str(target.parent), str(source)),
        ]
        kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        subprocess.run(  # noqa: S603
            command,
            env={**kept, "HOME": folder, "TMPDIR": folder},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        try:
            return target.read_bytes()
        except FileNotFoundError:
            # It also ends without a message when memory is short, and its exit status says nothing.
            detail = "LibreOffice cannot convert it; save it as docx or pptx, or raise RAG_PARSE_MEMORY"
            raise ExtractionError(QuarantineReason.MALFORMED, detail) from None


@contextmanager
def _may_write_files() -> Generator[None]:
    """Raise the limit on written files for the program, as far as the process may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
