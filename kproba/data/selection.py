"""Training images that are held out, to choose settings without the test images.

With the key `selection` of the configuration, a share of the training images takes the
place of the validation images, which are not decoded at all. So a setting can be chosen
by numbers of images that no test will show. See docs/protocol.md.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from kproba.data.kinds.pairs import Pair

# Before the name, because a folder dataset chooses its validation images by the
# digest of the name alone. The two choices must be independent.
SALT = "selection "


def is_for_selection(name: str, share: float) -> bool:
    """Whether a training image is held out.

    This depends only on its name. So an image is held out in all steps or in none, for
    all tasks and seeds, and adding or removing images does not move others.

    Args:
        name: Id of the image.
        share: Share to hold out, from 0 to 1.
    """
    digest = hashlib.sha256((SALT + name).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def hold_out(pairs: Iterable[Pair], share: float) -> list[Pair]:
    """Pairs of a dataset, with held-out training images as its validation images.

    Args:
        pairs: The pairs of the dataset.
        share: Share of the training images to hold out; 0 leaves all pairs as they are.

    Returns:
        The training pairs in their order, a share of them in the subset "val". The
        validation pairs of the dataset are left out.
    """
    if not share:
        return list(pairs)
    return [
        replace(pair, subset="val") if is_for_selection(pair.id, share) else pair
        for pair in pairs
        if pair.subset == "train"
    ]
