"""A context manager for each server: free loopback ports, a bounded wait until it is ready, and its termination."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import redis

from tests.servers.binaries import (
    kafka_program,
    language_model,
    postgres_programs,
    python_packages,
    redis_8_program,
    redis_program,
    redisearch_module,
    valkey_program,
    weed_program,
)

HOST = "127.0.0.1"
_Server = TypeVar("_Server")

_STARTS = 4
_PORT_TAKEN = ("in use", "Port allocation failed")  # from most servers, and from SeaweedFS
_READY_SECONDS = 60.0
_STOP_SECONDS = 5.0
# Below the ephemeral range (from 32768), even with 10000 added, so that no outgoing connection takes the port.
_FIRST_PORT, _LAST_PORT, _GRPC_OFFSET = 12_000, 22_700, 10_000


class ServerFailedError(Exception):
    """The server did not start; the message has the end of its log."""


class _PortTakenError(Exception):
    """Another process took the port between its selection and the server's start."""


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A running, empty Redis."""

    url: str
    process: subprocess.Popen[bytes]


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running SeaweedFS that verifies signatures, with one all-powerful identity."""

    endpoint_url: str
    access_key: str
    secret_key: str
    region: str
    process: subprocess.Popen[bytes]


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """A running PostgreSQL with an empty database."""

    url: str
    process: subprocess.Popen[bytes]


@dataclass(frozen=True, slots=True)
class AwsServer:
    """A running moto: S3 with notifications, and SQS. It accepts any credentials."""

    endpoint_url: str
    region: str
    process: subprocess.Popen[bytes]


@dataclass(frozen=True, slots=True)
class KafkaBroker:
    """A running Tansu without topics; it stores them in memory."""

    address: str
    process: subprocess.Popen[bytes]


@dataclass(frozen=True)
class LanguageModelServer:
    """A running model with OpenAI's protocol."""

    url: str
    process: subprocess.Popen[bytes]


@dataclass(frozen=True, slots=True)
class Certificate:
    """The PEM files of a server's certificate and key."""

    certificate: Path
    key: Path


RedisKind = Literal["stack", "redis-8", "valkey"]
_REDIS_PROGRAMS: dict[RedisKind, Callable[[Path], Path]] = {
    "stack": redis_program,
    "redis-8": redis_8_program,
    "valkey": valkey_program,
}


@contextlib.contextmanager
def redis_server(
    binaries: Path,
    *,
    kind: RedisKind = "stack",
    search: bool = True,
    cluster: bool = False,
    tls: Certificate | None = None,
) -> Generator[RedisServer]:
    """Run a server of this kind, with search commands unless `search` is false, or raise `ServerFailedError`.

    A `cluster` is one node with all slots: like any cluster, it rejects commands across several slots. With `tls`
    (``stack`` only) it listens on `rediss://`, and on a plain port only for its startup. ``valkey`` never has search
    commands.
    """
    with _folder("redis") as folder, contextlib.ExitStack() as stack:

        def start() -> RedisServer:
            port, bus, tls_port = _free_ports(3)
            command = [
                str(_REDIS_PROGRAMS[kind](binaries)),
                "--port",
                str(port),
                "--bind",
                HOST,
                "--dir",
                str(folder),
            ]
            command += ["--save", "", "--appendonly", "no"]
            if cluster:
                command += ["--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-announce-ip", HOST]
            if search and kind != "valkey":
                command += ["--loadmodule", str(redisearch_module(binaries))]
            if tls is not None:
                command += ["--tls-port", str(tls_port), "--tls-auth-clients", "no"]
                command += ["--tls-cert-file", str(tls.certificate), "--tls-key-file", str(tls.key)]
            process = _start(stack, command, folder)
            _wait_until(lambda: _is_redis(port, process.pid), process, folder)
            if cluster:
                _take_all_slots(port)
                _wait_until(lambda: _serves_slots(port), process, folder)
            url = f"redis://{HOST}:{port}/0" if tls is None else f"rediss://{HOST}:{tls_port}/0"
            return RedisServer(url, process)

        yield _with_other_ports(start)


@contextlib.contextmanager
def s3_server(binaries: Path) -> Generator[S3Server]:
    """Run an empty SeaweedFS with its S3 gateway, or raise `ServerFailedError`."""
    with _folder("s3") as folder, contextlib.ExitStack() as stack:
        access_key, secret_key, region = f"test{secrets.token_hex(6)}", secrets.token_hex(20), "us-east-1"
        credentials = [{"accessKey": access_key, "secretKey": secret_key}]
        identity = {"name": "tests", "credentials": credentials, "actions": ["Admin"]}
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))

        def start() -> S3Server:
            names = ("master", "volume", "filer", "s3", "admin")
            ports = dict(zip(names, _free_ports(len(names), also=_GRPC_OFFSET), strict=True))
            data = folder / f"data-{ports['s3']}"
            data.mkdir()
            stack.callback(_remove_sockets, [*ports.values()])
            command = [
                *(str(weed_program(binaries)), "-logtostderr=true", "mini", f"-dir={data}"),
                *(f"-ip={HOST}", f"-ip.bind={HOST}", "-master.telemetry=false"),
                *(f"-{name}.port={port}" for name, port in ports.items()),
                *(f"-s3.config={folder / 's3.json'}", "-s3.autoCreateBucket=false"),
                *("-s3.port.iceberg=0", "-s3.port.lance=0", "-admin.ui=false", "-webdav=false"),
            ]
            process = _start(stack, command, folder)
            server = S3Server(f"http://{HOST}:{ports['s3']}", access_key, secret_key, region, process)
            _wait_until(_s3_probe(server), process, folder)
            return server

        yield _with_other_ports(start)


@contextlib.contextmanager
def aws_server() -> Generator[AwsServer]:
    """Run an empty moto from the development dependencies, or raise `ServerFailedError`."""
    with _folder("aws") as folder, contextlib.ExitStack() as stack:

        def start() -> AwsServer:
            (port,) = _free_ports(1)
            process = _start(stack, [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)], folder)
            _wait_until(lambda: _is_http(f"http://{HOST}:{port}/moto-api/data.json"), process, folder)
            return AwsServer(f"http://{HOST}:{port}", "eu-west-1", process)

        yield _with_other_ports(start)


@contextlib.contextmanager
def language_model_server(binaries: Path) -> Generator[LanguageModelServer]:
    """Run a real, very small language model with OpenAI's protocol, or raise `ServerFailedError`."""
    with _folder("language-model") as folder, contextlib.ExitStack() as stack:

        def start() -> LanguageModelServer:
            (port,) = _free_ports(1)
            command = [
                *(sys.executable, str(Path(__file__).with_name("llama.py"))),
                *(str(python_packages(binaries)), str(language_model(binaries)), HOST, str(port)),
            ]
            process = _start(stack, command, folder)
            url = f"http://{HOST}:{port}"
            _wait_until(lambda: _is_http(f"{url}/health"), process, folder)
            return LanguageModelServer(f"{url}/v1", process)

        yield _with_other_ports(start)


@contextlib.contextmanager
def kafka_broker(binaries: Path) -> Generator[KafkaBroker]:
    """Run an empty Tansu, or raise `ServerFailedError`."""
    with _folder("kafka") as folder, contextlib.ExitStack() as stack:

        def start() -> KafkaBroker:
            (port,) = _free_ports(1)
            cluster = f"tests-{secrets.token_hex(6)}"  # so that another broker on the port is not mistaken for it
            command = [
                *(str(kafka_program(binaries)), "broker", "--cluster-id", cluster),
                *("--listener-url", f"tcp://{HOST}:{port}", "--advertised-listener-url", f"tcp://{HOST}:{port}"),
                *("--storage-engine", "memory://tansu/"),
            ]
            process = _start(stack, command, folder)
            _wait_until(lambda: _cluster_at(f"{HOST}:{port}") == cluster, process, folder)
            return KafkaBroker(f"{HOST}:{port}", process)

        yield _with_other_ports(start)


@contextlib.contextmanager
def postgres_server(binaries: Path) -> Generator[PostgresServer]:
    """Run a PostgreSQL that trusts every local connection, or raise `ServerFailedError`."""
    with _folder("postgres") as folder, contextlib.ExitStack() as stack:
        programs, user = postgres_programs(binaries), None
        if os.geteuid() == 0:  # it refuses to run as root, and its user may not be able to read our folder
            installed, user = programs.parents[2], "nobody"
            for name in ("pgserver", "pgserver.libs"):
                shutil.copytree(installed / name, folder / name)
            programs = folder / programs.relative_to(installed)
            subprocess.run(["chown", "-R", user, str(folder)], check=True)
        data = folder / "data"
        command = [str(programs / "initdb"), "--auth=trust", "--username=dagster", "--no-sync", str(data)]
        subprocess.run(command, cwd=folder, user=user, check=True, capture_output=True, env={"LC_ALL": "C"})

        def start() -> PostgresServer:
            (port,) = _free_ports(1)
            server = [str(programs / "postgres"), "-D", str(data), "-h", HOST, "-p", str(port), "-k", "", "-F"]
            process = _start(stack, server, folder, user=user, stop=signal.SIGINT)
            ready = [str(programs / "pg_isready"), "-q", "-h", HOST, "-p", str(port), "-U", "dagster"]
            _wait_until(lambda: subprocess.run(ready, check=False).returncode == 0, process, folder)
            return PostgresServer(f"postgresql+psycopg2://dagster@{HOST}:{port}/postgres", process)

        yield _with_other_ports(start)


def _is_http(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def _cluster_at(address: str) -> str | None:
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    try:
        # By default the client prints that nothing is listening yet.
        return AdminClient({"bootstrap.servers": address, "log_level": 0}).list_topics(timeout=2).cluster_id
    except KafkaException:
        return None


def _s3_probe(server: S3Server) -> Callable[[], bool]:
    """Return a probe that writes an object: the gateway responds before its volumes do.

    The secret is unique to this server, so another server on the port fails the probe.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name=server.region,
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=5),
    )

    def answers() -> bool:
        try:
            client.create_bucket(Bucket="readiness")
            client.put_object(Bucket="readiness", Key="probe", Body=b"")
        except (BotoCoreError, ClientError):
            return False
        return True

    return answers


def _is_redis(port: int, pid: int) -> bool:
    """Return whether this particular process answers on the port."""
    try:
        with socket.create_connection((HOST, port), timeout=2) as connection:
            connection.sendall(b"INFO server\r\n")
            return f"process_id:{pid}\r\n".encode() in connection.recv(65_536)
    except OSError:
        return False


def _take_all_slots(port: int) -> None:
    with redis.Redis(HOST, port) as client:
        client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16_383)


def _serves_slots(port: int) -> bool:
    with redis.Redis(HOST, port) as client:
        info: Any = client.execute_command("CLUSTER INFO")
        return info["cluster_state"] == "ok"


def _remove_sockets(ports: Sequence[int]) -> None:
    """Remove the sockets that SeaweedFS leaves behind in a folder that cannot be configured."""
    for port in (*ports, *(port + _GRPC_OFFSET for port in ports)):
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _folder(name: str) -> Generator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f"rag-{name}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """Return a loopback port that is free now."""
    return _free_ports(1)[0]


def _free_ports(count: int, *, also: int = 0) -> list[int]:
    """Return distinct ports that are currently free, each together with the port `also` above it."""
    for _ in range(200):
        ports = random.sample(range(_FIRST_PORT, _LAST_PORT), count)
        with contextlib.ExitStack() as stack:
            try:
                for port in sorted({*ports, *(port + also for port in ports)}):
                    stack.enter_context(contextlib.closing(socket.socket())).bind((HOST, port))
            except OSError:
                continue
            return ports
    raise ServerFailedError(f"no free ports between {_FIRST_PORT} and {_LAST_PORT} on {HOST}")


def _with_other_ports(start: Callable[[], _Server]) -> _Server:
    for _ in range(_STARTS - 1):
        with contextlib.suppress(_PortTakenError):
            return start()
    try:
        return start()
    except _PortTakenError as error:
        raise ServerFailedError(f"all {_STARTS} starts found their port taken; the last: {error}") from error


def _start(
    stack: contextlib.ExitStack,
    command: Sequence[str],
    folder: Path,
    *,
    user: str | None = None,
    stop: signal.Signals = signal.SIGTERM,
) -> subprocess.Popen[bytes]:
    # A minimal environment: AWS_*, S3_BUCKET and similar variables would change the servers' behaviour.
    environment = {"HOME": str(folder), "PATH": "/usr/bin:/bin", "LC_ALL": "C"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            user=user,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    stack.callback(_stop, process, stop)
    return process


def _stop(process: subprocess.Popen[bytes], stop: signal.Signals = signal.SIGTERM) -> None:
    process.send_signal(stop)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while not ready():
        log = (folder / "log").read_text(errors="replace")
        ended = process.poll() is not None
        if ended and any(words in log for words in _PORT_TAKEN):
            raise _PortTakenError(log[-300:])
        if ended or time.monotonic() > deadline:
            state = f"ended with status {process.returncode}" if ended else f"is not ready after {_READY_SECONDS:.0f} s"
            raise ServerFailedError(f"{Path(str(process.args[0])).name} {state}; the end of its log:\n{log[-2000:]}")
        time.sleep(0.05)
