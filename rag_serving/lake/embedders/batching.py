"""Group tokenized texts into batches: by length, or with few distinct shapes."""

from collections.abc import Sequence

BATCH_TOKENS = 2048
"""Tokens per batch whose activations still fit the CPU caches; larger batches were slower, smaller ones cost calls."""

BATCH_ROWS = 32

CALL_TOKENS = 14
"""Fixed cost of a call of the graph, in tokens: 1.5 to 1.9 ms on two cores with AVX-512 bf16."""

WIDTH_STEP = 8
"""Questions are padded to multiples of this many tokens."""


def batches_by_length(
    encoded: Sequence[Sequence[int]], *, most_tokens: int, most_rows: int, most_padding: int | None = None
) -> list[list[int]]:
    """Return the rows in batches of similar length, longest first, to minimize padding.

    A batch has at most `most_tokens` (including padding), `most_rows`, and `most_padding` tokens of padding, beyond
    which another call is cheaper. A row longer than `most_tokens` is a batch by itself.
    """
    batches: list[list[int]] = []
    width = padding = 0
    for row in sorted(range(len(encoded)), key=lambda row: len(encoded[row]), reverse=True):
        length = len(encoded[row])
        padding += width - length
        if (
            batches
            and len(batches[-1]) < most_rows
            and (len(batches[-1]) + 1) * width <= most_tokens
            and (most_padding is None or padding <= most_padding)
        ):
            batches[-1].append(row)
        else:
            batches.append([row])
            width, padding = length, 0
    return batches


def batches_of_few_shapes(lengths: Sequence[int]) -> list[list[int]]:
    """Return the rows in batches whose sizes are powers of two, longest first.

    With widths padded to `WIDTH_STEP`, questions then have only dozens of shapes.
    """
    rows = sorted(range(len(lengths)), key=lambda row: lengths[row], reverse=True)
    batches: list[list[int]] = []
    while rows:
        fit = max(1, BATCH_TOKENS // rounded_up(lengths[rows[0]], WIDTH_STEP))
        most = 1 << (min(len(rows), fit, BATCH_ROWS).bit_length() - 1)
        batches.append(rows[:most])
        rows = rows[most:]
    return batches


def rounded_up(number: int, step: int) -> int:
    """Round up to a multiple of `step`."""
    return -(-number // step) * step
