"""Allowed values and defaults of settings that several modules share. Imports nothing from this project."""

from typing import Final, Literal

ChunkerName = Literal["semantic", "structure"]

CHUNK_TOKENS: Final = 192

ContextName = Literal["none", "headings", "neighbours"]

# A single character can take this many tokens (a ligature that expands to a phrase): smaller windows cannot hold it.
SMALLEST_WINDOW: Final = 32

RuntimeName = Literal["auto", "openvino", "torch"]

PACKAGED_MODEL = "all-MiniLM-L6-v2"

MULTILINGUAL_MODEL = "intfloat/multilingual-e5-small"
"""Named where documents are in languages that the model does not read."""

ArrivalsName = Literal["listing", "sqs", "kafka"]

IGNORED: Final = (
    *("~$*", "*~", "*.bak", "*.crdownload", "*.lock", "*.part", "*.swp", "*.temp", "*.tmp", "desktop.ini", "Thumbs.db"),
)
"""Temporary files, locks, and what file managers leave; hidden names are left out in any case."""
IMAGES: Final = (
    *("*.bmp", "*.gif", "*.heic", "*.ico", "*.jpeg", "*.jpg", "*.png", "*.svg", "*.tif", "*.tiff", "*.webp"),
)
"""Names that are left out, too, unless the text of images is recognised."""

PROFILES: Final = ("one-machine", "workers", "pods")
"""Where runs execute, see `rag-assets init`."""
