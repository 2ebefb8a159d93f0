"""How an image that is larger than a tile is cut into overlapping tiles."""

import numpy as np

TILE = 1024  # pixels, the default side of a tile
SMALLEST_TILE = 64  # pixels
OVERLAP = 0.25  # of a tile, at least


def tile_starts(length: int, tile: int) -> list[int]:
    """First pixels of the tiles along one side of an image.

    The tiles are evenly spaced, cover the side, and overlap by a quarter or more.

    Args:
        length: Pixels of the side.
        tile: Pixels of a tile.
    """
    if length <= tile:
        return [0]
    step = tile - round(OVERLAP * tile)
    count = 1 + -(-(length - tile) // step)
    starts = np.linspace(0, length - tile, count).round().astype(int)
    return [int(start) for start in starts]
