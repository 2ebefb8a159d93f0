"""How an image that is larger than a tile is cut into overlapping tiles."""

TILE = 1024  # pixels, the default side of a tile
SMALLEST_TILE = 64  # pixels
SMALLEST_LONG_SIDE = 32  # pixels, of an image that is scaled
OVERLAP = 0.25  # of a tile, at least


def check_sizes(long_side: int | None, tile: int) -> None:
    """Check `long_side` and `tile` of `Segmenter.predict`.

    Raises:
        ValueError: One is too small.
    """
    if tile < SMALLEST_TILE or (long_side and long_side < SMALLEST_LONG_SIDE):
        raise ValueError(
            f"Expected a tile of at least {SMALLEST_TILE} pixels and a long side "
            f"of at least {SMALLEST_LONG_SIDE}, but got {tile} and {long_side}. "
            f"Raise them, or leave them out."
        )


def tile_starts(length: int, tile: int) -> list[int]:
    """First pixels of the tiles along one side of an image.

    The tiles are evenly spaced, cover the side, and overlap by a quarter or more.

    Args:
        length: Pixels of the side.
        tile: Pixels of a tile.
    """
    if length <= tile:
        return [0]
    import numpy as np  # here, as `kproba --help` needs the numbers above alone

    step = tile - round(OVERLAP * tile)
    count = 1 + -(-(length - tile) // step)
    starts = np.linspace(0, length - tile, count).round().astype(int)
    return [int(start) for start in starts]
