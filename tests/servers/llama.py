"""Serve a language model until the process ends: PACKAGES MODEL HOST PORT. Runs as a separate program."""

from __future__ import annotations

import signal
import sys
from typing import Any


def main(packages: str, model: str, host: str, port: str) -> None:
    """Serve with one thread, one request at a time: a test must not use the whole machine."""
    sys.path.append(packages)
    import xllamacpp  # pyright: ignore[reportMissingImports]  # installed in a separate folder

    llama: Any = xllamacpp
    parameters = llama.CommonParams()
    parameters.model.path = model
    parameters.hostnames = [host]
    parameters.port = int(port)
    parameters.n_ctx = 4096
    parameters.n_parallel = 1
    parameters.n_gpu_layers = 0
    parameters.cpuparams.n_threads = 1
    parameters.cpuparams_batch.n_threads = 1
    server = llama.Server(parameters)
    print(server.listening_address, flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main(*sys.argv[1:])
