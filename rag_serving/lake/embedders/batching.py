"""Batches of tokenized texts: by length, and of few distinct shapes."""

from collections.abc import Sequence

BATCH_TOKENS = 2048
"""Activations of so many tokens still fit the caches; longer batches were slower, shorter ones cost calls."""

BATCH_ROWS = 32

CALL_TOKENS = 14
"""What a call of the graph costs beside its tokens, in tokens: 1.5 to 1.9 ms on two cores with AVX-512 bf16."""

WIDTH_STEP = 8
"""Questions are padded to lengths of so many tokens and their multiples."""


def batches_by_length(
    encoded: Sequence[Sequence[int]], *, most_tokens: int, most_rows: int, most_padding: int | None = None
) -> list[list[int]]:
    """Rows of token ids in batches, the longest first: neighbours in length, so that little is spent on padding.

    A batch has at most that many tokens, padding included, and rows, and, where `most_padding` is given, that many
    tokens of padding: of a few texts of all lengths, one more call costs less. A row that is longer alone is a batch of
    its own.
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
    """Rows of those many tokens in batches, the longest first, whose numbers of rows are powers of two.

    Padded to whole steps of length, questions make some dozens of shapes then, however many are asked.
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
    return -(-number // step) * step
