"""Arrivals from an SQS queue that S3 notifies.

A message is deleted by the poll after the one that received it, because only then is its content certainly stored; the
position has its handle. If the deletion fails, the message is delivered again, which is harmless.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from rag_assets.arrivals.events.base import Delivery
from rag_assets.errors import FeedRefused, FeedUnavailable
from rag_assets.storage.batches import batches
from rag_serving.errors import SettingsError

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.type_defs import MessageTypeDef

MAX_MESSAGES = 1000
MAX_HANDLE_BYTES = 512 * 2**10
"""Limit for the handles in one position; AWS's have about 400 bytes each."""
_AT_ONCE = 10  # SQS's limit per call
_WAIT_SECONDS = 5
_MAX_VISIBILITY = 43_200  # SQS's limit

_REFUSALS = frozenset(
    {
        *("AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist", "InvalidAddress", "AccessDenied", "403"),
        *("AccessDeniedException", "ExpiredToken", "InvalidClientTokenId", "SignatureDoesNotMatch"),
        *("UnrecognizedClientException", "KMS.AccessDeniedException", "InvalidSecurity", "ExpiredTokenException"),
    }
)


class SqsFeed:
    """One queue. Without a `client`, each poll creates one from the AWS_* variables."""

    name = "sqs"

    def __init__(
        self,
        queue_url: str | None,
        *,
        visibility_seconds: int,
        wait_seconds: int = _WAIT_SECONDS,
        max_messages: int = MAX_MESSAGES,
        client: "SQSClient | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue_url = queue_url
        self._visibility = min(visibility_seconds, _MAX_VISIBILITY)
        self._wait = wait_seconds
        self._max_messages = max_messages
        self._client = client
        self._clock = clock

    def poll(self, position: Mapping[str, Any], *, seconds: float) -> Delivery:
        """Delete the messages of the last poll, then receive. The position has the handles to delete next time."""
        from botocore.exceptions import BotoCoreError, ClientError

        if self._queue_url is None:
            raise SettingsError("RAG_SQS_QUEUE_URL is not set; RAG_ARRIVALS=sqs needs the URL of the queue to read")
        deadline = self._clock() + seconds
        try:
            client = self._client or _client()
            left = _delete(client, self._queue_url, _handles(position))
            messages = list(self._receive(client, self._queue_url, deadline))
        except (ClientError, BotoCoreError) as error:
            raise _failure(error) from error
        return Delivery(
            bodies=tuple(message.get("Body") for message in messages),
            position={"handles": [handle for message in messages if (handle := message.get("ReceiptHandle"))]},
            note=f"{left} messages could not be deleted and will be delivered again" if left else "",
        )

    def _receive(self, client: "SQSClient", queue_url: str, deadline: float) -> "Iterator[MessageTypeDef]":
        """Yield messages until the queue is empty or slow, the time is over, or the position is full."""
        enough = self._clock() + self._wait
        received = size = 0
        while received < self._max_messages and size < MAX_HANDLE_BYTES and (left := deadline - self._clock()) > 0:
            answer = client.receive_message(
                QueueUrl=queue_url,
                MaxNumberOfMessages=min(_AT_ONCE, self._max_messages - received),
                # At least one second, for a long poll: a short poll only asks a sample of SQS's servers.
                WaitTimeSeconds=max(1, min(self._wait, int(left))),
                VisibilityTimeout=self._visibility,
            )
            messages = answer.get("Messages", [])
            received += len(messages)
            size += sum(len(message.get("ReceiptHandle", "")) for message in messages)
            yield from messages
            # Do not delay received messages to wait for a slow trickle.
            if not messages or (len(messages) < _AT_ONCE and self._clock() > enough):
                return


def _delete(client: "SQSClient", queue_url: str, handles: Sequence[str]) -> int:
    """Delete messages; return how many could not be deleted."""
    failed = 0
    for some in batches(handles, _AT_ONCE):
        entries: Any = [{"Id": str(number), "ReceiptHandle": handle} for number, handle in enumerate(some)]
        failed += len(client.delete_message_batch(QueueUrl=queue_url, Entries=entries).get("Failed", []))
    return failed


def _handles(position: Mapping[str, Any]) -> list[str]:
    try:
        return TypeAdapter(list[str]).validate_python(position.get("handles", []))
    except ValidationError:  # the messages are delivered again
        return []


def _client() -> "SQSClient":
    import boto3
    from botocore.config import Config

    # A tick has 60 seconds; boto3's defaults (five tries of a minute each) would take longer.
    config = Config(connect_timeout=4, read_timeout=15, retries={"total_max_attempts": 2, "mode": "standard"})
    return boto3.session.Session().client("sqs", config=config)


def _failure(error: Exception) -> FeedUnavailable:
    from botocore.exceptions import NoCredentialsError, NoRegionError, PartialCredentialsError

    response: Any = getattr(error, "response", None) or {}
    details: Any = response.get("Error", {})
    reason = f"{details.get('Code')} ({str(details.get('Message', ''))[:120]})" if details else str(error)[:200]
    hopeless = isinstance(error, NoCredentialsError | PartialCredentialsError | NoRegionError)
    kind = FeedRefused if hopeless or details.get("Code", "") in _REFUSALS else FeedUnavailable
    return kind(
        f"cannot read the queue of RAG_SQS_QUEUE_URL: {reason}; check the queue, its policy and the AWS_* variables "
        "(key, secret, region, AWS_ENDPOINT_URL_SQS). No message was deleted"
    )
