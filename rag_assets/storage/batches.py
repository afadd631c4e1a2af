"""Split work into batches whose memory is bounded."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def batches(
    items: Iterable[Item], most: int, *, weigh: Callable[[Item], int] = lambda _item: 0, most_weight: int = 0
) -> Iterator[list[Item]]:
    """Yield the items in order, in lists of at most `most` items whose weights add up to at most `most_weight`.

    An item that is heavier alone gets a list of its own.
    """
    batch: list[Item] = []
    total = 0
    for item in items:
        weight = weigh(item)
        if batch and (len(batch) == most or total + weight > most_weight):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += weight
    if batch:
        yield batch
