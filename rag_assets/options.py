"""Names and defaults of settings that several modules share. Imports nothing of this project."""

from typing import Final, Literal

ChunkerName = Literal["semantic", "structure"]

CHUNK_TOKENS: Final = 192

ContextName = Literal["none", "headings", "neighbours"]

# One character can need this many tokens (a ligature that unfolds into a phrase), so that smaller windows
# cannot hold every text.
SMALLEST_WINDOW: Final = 32

RuntimeName = Literal["auto", "openvino", "torch"]

PACKAGED_MODEL = "all-MiniLM-L6-v2"

ExecutorName = Literal["in_process", "multiprocess", "k8s"]
ArrivalsName = Literal["listing", "sqs", "kafka"]
