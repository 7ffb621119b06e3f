"""The batches of a proof."""

from collections.abc import Iterator, Sequence


def batches(sizes: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield the places of the inputs of each batch.

    The first batch is as given: long and short inputs are padded together, as in requests. The others have inputs of
    similar size, which pads least and takes least time.

    Args:
        sizes: of each input, such as its bytes.
        batch_size: inputs per batch; the last one may have fewer.
    """
    order = list(range(len(sizes)))
    order[batch_size:] = sorted(order[batch_size:], key=lambda place: sizes[place])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
