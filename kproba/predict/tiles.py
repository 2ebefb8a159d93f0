"""Limits for the sizes in a prediction; `kproba.data.tiles` cuts the tiles."""

SMALLEST_TILE = 64  # pixels
SMALLEST_LONG_SIDE = 32  # pixels, of an image that is scaled


def check_sizes(long_side: int | None, tile: int) -> None:
    """Check `long_side` and `tile` of `Segmenter.predict`.

    Raises:
        ValueError: One is too small.
    """
    if tile < SMALLEST_TILE or (long_side and long_side < SMALLEST_LONG_SIDE):
        raise ValueError(
            f"Expected a tile of at least {SMALLEST_TILE} pixels and a long side of at "
            f"least {SMALLEST_LONG_SIDE}, but got {tile} and {long_side}. Increase "
            f"them, or leave them out."
        )
