"""Real servers for the tests: their programs, installed by pip, and a context manager for each.

``python -m tests.servers install [DIR]`` installs the programs into DIR (``.servers`` by default).
"""

from tests.servers.binaries import DEFAULT_FOLDER, ServersMissingError, install, require_installed
from tests.servers.browser import axe_script, chromium
from tests.servers.faults import Fault, FaultyS3, Rule, faulty_s3
from tests.servers.processes import (
    AwsServer,
    Certificate,
    KafkaBroker,
    LanguageModelServer,
    PostgresServer,
    RedisKind,
    RedisServer,
    S3Server,
    ServerFailedError,
    aws_server,
    kafka_broker,
    language_model_server,
    postgres_server,
    redis_server,
    s3_server,
)

__all__ = [
    "DEFAULT_FOLDER",
    "AwsServer",
    "Certificate",
    "Fault",
    "FaultyS3",
    "KafkaBroker",
    "LanguageModelServer",
    "PostgresServer",
    "RedisKind",
    "RedisServer",
    "Rule",
    "S3Server",
    "ServerFailedError",
    "ServersMissingError",
    "aws_server",
    "axe_script",
    "chromium",
    "faulty_s3",
    "install",
    "kafka_broker",
    "language_model_server",
    "postgres_server",
    "redis_server",
    "require_installed",
    "s3_server",
]
