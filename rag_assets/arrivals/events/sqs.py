"""Arrivals from an SQS queue that S3 notifies.

A message is deleted one poll after it was received, from the handle kept in the position: only then is it certain that
what it named was stored. A message whose deletion fails comes again, which changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from rag_assets.arrivals.events.base import Delivery
from rag_assets.errors import FeedRefused, FeedUnavailable
from rag_serving.errors import SettingsError

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.type_defs import MessageTypeDef

MAX_MESSAGES = 1000
MAX_HANDLE_BYTES = 512 * 2**10
"""Handles in one position; AWS makes them of some 400 bytes each."""
_AT_ONCE = 10  # SQS's own bound of one call
_WAIT_SECONDS = 5
_MAX_VISIBILITY = 43_200  # SQS's own bound

_REFUSALS = frozenset(
    {
        *("AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist", "InvalidAddress", "AccessDenied", "403"),
        *("AccessDeniedException", "ExpiredToken", "InvalidClientTokenId", "SignatureDoesNotMatch"),
        *("UnrecognizedClientException", "KMS.AccessDeniedException", "InvalidSecurity", "ExpiredTokenException"),
    }
)


class SqsFeed:
    """One queue. Without a `client`, boto3 makes one from the AWS_* variables at the first poll."""

    name = "sqs"

    def __init__(
        self,
        queue_url: str | None,
        *,
        visibility_seconds: int,
        wait_seconds: int = _WAIT_SECONDS,
        max_messages: int = MAX_MESSAGES,
        client: SQSClient | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue_url = queue_url
        self._visibility = min(visibility_seconds, _MAX_VISIBILITY)
        self._wait = wait_seconds
        self._max_messages = max_messages
        self._client = client
        self._clock = clock

    def poll(self, position: Mapping[str, Any], *, seconds: float) -> Delivery:
        """Delete what the last poll received, then receive. The position is the handles to delete next time."""
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            NoCredentialsError,
            NoRegionError,
            PartialCredentialsError,
        )

        if self._queue_url is None:
            raise SettingsError("RAG_SQS_QUEUE_URL is not set; RAG_ARRIVALS=sqs needs the URL of the queue to read")
        deadline = self._clock() + seconds
        try:
            client = self._client or _client()
            left = _delete(client, self._queue_url, _handles(position))
            messages = list(self._receive(client, self._queue_url, deadline))
        except ClientError as error:
            refused = error.response.get("Error", {}).get("Code", "") in _REFUSALS
            raise _failure(error, refused=refused) from error
        except BotoCoreError as error:
            refused = isinstance(error, NoCredentialsError | PartialCredentialsError | NoRegionError)
            raise _failure(error, refused=refused) from error
        return Delivery(
            bodies=tuple(message.get("Body") for message in messages),
            position={"handles": [handle for message in messages if (handle := message.get("ReceiptHandle"))]},
            note=f"{left} messages could not be deleted and come again" if left else "",
        )

    def _receive(self, client: SQSClient, queue_url: str, deadline: float) -> Iterator[MessageTypeDef]:
        """Messages until the queue gives none, only a trickle is left, the time is over or the position is full."""
        enough = self._clock() + self._wait
        received = size = 0
        while received < self._max_messages and size < MAX_HANDLE_BYTES and (left := deadline - self._clock()) > 0:
            answer = client.receive_message(
                QueueUrl=queue_url,
                MaxNumberOfMessages=min(_AT_ONCE, self._max_messages - received),
                # Even one second is a long poll; without, SQS asks a sample of its servers only.
                WaitTimeSeconds=max(1, min(self._wait, int(left))),
                VisibilityTimeout=self._visibility,
            )
            messages = answer.get("Messages", [])
            received += len(messages)
            size += sum(len(message.get("ReceiptHandle", "")) for message in messages)
            yield from messages
            # Waiting for each message of a trickle would hold up those that are here.
            if not messages or (len(messages) < _AT_ONCE and self._clock() > enough):
                return


def _delete(client: SQSClient, queue_url: str, handles: Sequence[str]) -> int:
    """How many of them could not be deleted."""
    failed = 0
    for start in range(0, len(handles), _AT_ONCE):
        entries: Any = [
            {"Id": str(number), "ReceiptHandle": handle}
            for number, handle in enumerate(handles[start : start + _AT_ONCE])
        ]
        failed += len(client.delete_message_batch(QueueUrl=queue_url, Entries=entries).get("Failed", []))
    return failed


def _handles(position: Mapping[str, Any]) -> list[str]:
    try:
        return TypeAdapter(list[str]).validate_python(position.get("handles", []))
    except ValidationError:  # their messages come again
        return []


def _client() -> SQSClient:
    import boto3
    from botocore.config import Config

    # A tick has 60 seconds: boto3's own patience (five tries of a minute each) would outlast it.
    config = Config(connect_timeout=4, read_timeout=15, retries={"total_max_attempts": 2, "mode": "standard"})
    return boto3.session.Session().client("sqs", config=config)


def _failure(error: Exception, *, refused: bool) -> FeedUnavailable:
    response: Any = getattr(error, "response", None)
    details: Any = response.get("Error", {}) if response else {}
    reason = f"{details.get('Code')} ({str(details.get('Message', ''))[:120]})" if details else str(error)[:200]
    kind = FeedRefused if refused else FeedUnavailable
    return kind(
        f"cannot read the queue of RAG_SQS_QUEUE_URL: {reason}; check the queue, its policy and the AWS_* variables "
        "(key, secret, region, AWS_ENDPOINT_URL_SQS). Its messages stay where they are"
    )
