"""Look-up tables from the labels in mask files to training and evaluation targets."""

from dataclasses import dataclass

import numpy as np

from kproba.data.tasks import Groups

IGNORE = 255  # in masks and targets: ignored in training and evaluation
UNSURE = 254  # in targets: background or an old class; the pseudo labels are unsure
UNKNOWN = 253  # in targets of methods that read saliency maps: salient background


def check_room_for_classes(channels: int) -> None:
    """Refuse more classes than the bytes of masks and targets have values for.

    Args:
        channels: |S_t|, background included.

    Raises:
        ValueError: There are more than 254.
    """
    if channels > UNSURE:
        raise ValueError(
            f"Expected at most {UNSURE - 1} classes, because masks and targets have "
            f"one byte per pixel, and {UNSURE} and {IGNORE} are no classes, but got "
            f"{channels - 1}. Merge classes, or leave some out of the task."
        )


def check_room_for_unknown(channels: int) -> None:
    """Refuse so many classes that one of them has the label `UNKNOWN`.

    Args:
        channels: |S_t|, background included.

    Raises:
        ValueError: There are more than 253.
    """
    if channels > UNKNOWN:
        raise ValueError(
            f"Expected at most {UNKNOWN - 1} classes for a method with a class for "
            f"unknown objects, which is {UNKNOWN} in the targets, but got "
            f"{channels - 1}. Choose another method, such as ssul_light."
        )


@dataclass(frozen=True)
class LabelMap:
    """Maps raw labels to output indices at the last step of `groups`.

    Attributes:
        groups: Raw labels of the classes of each step 0..t.
        setting: "sequential", or any other one, as their labels are the same.
    """

    groups: Groups
    setting: str = "overlap"

    @property
    def seen(self) -> tuple[int, ...]:
        """Raw labels of S_t without background, in output order (index 1, 2, ..)."""
        return tuple(label for group in self.groups for label in group)

    @property
    def channels(self) -> int:
        """|S_t|, background included."""
        return 1 + len(self.seen)

    @property
    def first_new(self) -> int:
        """Output index of the first class of C_t; C_t is `first_new`..`channels`-1."""
        return self.channels - len(self.groups[-1])

    def training_table(self) -> np.ndarray:
        """Look-up table (256,) uint8 from raw label to training target.

        Classes of C_t get their output index, 255 stays 255, and everything else (old
        and future classes, background) becomes 0. If the setting is "sequential", old
        classes get their output index, too.

        Raises:
            ValueError: There are more classes than a byte can name.
        """
        check_room_for_classes(self.channels)
        table = np.zeros(256, np.uint8)
        named = self.groups if self.setting == "sequential" else self.groups[-1:]
        labels = [label for group in named for label in group]
        table[labels] = self.channels - len(labels) + np.arange(len(labels))
        table[IGNORE] = IGNORE
        return table

    def evaluation_table(
        self, *, unseen: int = IGNORE, background: int = 0
    ) -> np.ndarray:
        """Look-up table (256,) uint8 from raw label to true class, for seen classes.

        Args:
            unseen: Target of classes that are not seen yet (255: ignored).
            background: Target of raw label 0 (255: ignored).

        Raises:
            ValueError: There are more classes than a byte can name.
        """
        check_room_for_classes(self.channels)
        table = np.full(256, unseen, np.uint8)
        table[list(self.seen)] = 1 + np.arange(len(self.seen))
        table[0] = background
        table[IGNORE] = IGNORE
        return table
