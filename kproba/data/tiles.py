"""Tiles of a picture that is too large for one forward pass.

All jobs and the prediction use the same limit. If the longer side of a picture has at
most `TILE` pixels, the network gets the whole picture; otherwise it gets tiles.
"""

from collections.abc import Iterator, Sequence

TILE = 1024  # pixels, the default side of a tile
OVERLAP = 0.25  # of a tile, at least, where tiles overlap
MOST_BATCH_PIXELS = 4 * TILE**2  # of a batch of whole pictures
ALIGNED = 32  # pixels: cuts lie on multiples, where cells of all strides begin


def needs_tiles(size: Sequence[int]) -> bool:
    """Whether a picture of (.., height, width) is larger than a tile."""
    return max(size[-2:]) > TILE


def tile_starts(length: int, tile: int) -> list[int]:
    """First pixels of the tiles along one side of an image.

    The tiles are evenly spaced, cover the side, and overlap by a quarter or more.

    Args:
        length: Pixels of the side.
        tile: Pixels of a tile.
    """
    if length <= tile:
        return [0]
    import numpy as np  # late, because `kproba --help` needs only the constants

    step = tile - round(OVERLAP * tile)
    count = 1 + -(-(length - tile) // step)
    starts = np.linspace(0, length - tile, count).round().astype(int)
    return [int(start) for start in starts]


def cuts(height: int, width: int, tile: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of tiles that do not overlap and cover a picture once.

    Args:
        height: Height of the picture in pixels.
        width: Width of the picture in pixels.
        tile: Longest side of a tile in pixels.
    """
    for rows in _cut(height, tile):
        for columns in _cut(width, tile):
            yield rows, columns


def _cut(length: int, tile: int) -> list[slice]:
    """Parts of a side: few and nearly equal, starting at multiples of 32."""
    if length <= tile:
        return [slice(0, length)]
    even = -(-length // -(-length // tile))
    step = min(tile, -(-even // ALIGNED) * ALIGNED)
    starts = range(0, length, step)
    return [slice(start, min(start + step, length)) for start in starts]
