"""The inputs of the loss terms: outputs, targets, masks and counts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F

from kproba.data.labels import IGNORE
from kproba.methods.replay import Drawn
from kproba.network.layers import upsample
from kproba.network.logits import compose_logits
from kproba.network.network import Outputs

T = TypeVar("T")


class Masks(NamedTuple):
    """Cells for the terms of an increment, at feature resolution, (B, h, w) bool.

    Attributes:
        new: M⁺, cells whose raw label is a class of C_t.
        background: M⁻, cells whose raw label is 0.
        remaining: Cells of M⁻ whose pseudo label is 0 too.
    """

    new: torch.Tensor
    background: torch.Tensor
    remaining: torch.Tensor


@dataclass(frozen=True)
class Counts:
    """Denominators over the global batch.

    Attributes:
        pixels: Pixels that are not 255.
        new: Cells of M⁺.
        background: Cells of M⁻.
        cells: All cells.
        images: Images.
        area: All pixels, including those that are 255.
        remaining: Cells of M⁻ whose pseudo label is 0.

    At step 0, which has no masks, the counts of cells are 0. A term of step 0 divides
    by pixels, area or images.
    """

    pixels: float = 0
    new: float = 0
    background: float = 0
    cells: float = 0
    images: float = 0
    area: float = 0
    remaining: float = 0


def cell_masks(
    targets: torch.Tensor, first_new: int, size: Sequence[int], *, sequential: bool
) -> Masks:
    """M⁺ and M⁻ at feature resolution, nearest neighbour (the cell's centre pixel).

    A pseudo-labelled target names old classes only where the raw label is 0, so the
    masks can be read from it. So does the target of an image in memory: whatever it
    knows of old classes, this step's labels call it background. Unsure pixels (255
    here) are in neither mask.

    Args:
        targets: ŷ, (B, H, W) uint8.
        first_new: Output index of the first class of C_t.
        size: (h, w).
        sequential: Old classes in the target are true labels (setting "sequential"),
            not pseudo labels; they belong to neither mask.
    """
    cells = F.interpolate(targets[:, None].float(), tuple(size), mode="nearest-exact")
    cells = cells[:, 0]
    new = (cells >= first_new) & (cells != IGNORE)
    remaining = cells == 0
    background = remaining if sequential else cells < first_new
    return Masks(new, background, remaining)


@dataclass(frozen=True, eq=False)
class Case:
    """One micro-batch, as input of the loss terms.

    Attributes:
        student: Outputs of the network that trains.
        targets: ŷ, (B, H, W) uint8, 255 ignored; `kproba.data.labels.UNKNOWN` for
            unknown objects, if a term of the method needs "saliency".
        counts: Denominators over the global batch.
        masks: M⁺ and M⁻; None at step 0.
        teacher: Outputs of step t-1's network; None if no term needs it.
        certainty: ν, the share of each image's background that the pseudo labels are
            sure of, (B,) float32; None if no term needs it.
        replay: Drawn features of old classes; None if no term needs them.
        options: Numbers of the method, by name (`kproba.methods.terms.Term.options`).
        totals: By term, the sums over the global batch that it asked for
            (`kproba.methods.terms.Term.totals`), each (n,).
        share: Factor that makes a value which every micro-batch of every process knows
            a part of a sum: 1 / (processes x micro-batches).
    """

    student: Outputs
    targets: torch.Tensor
    counts: Counts
    masks: Masks | None = None
    teacher: Outputs | None = None
    certainty: torch.Tensor | None = None
    replay: Drawn | None = None
    options: Mapping[str, float] = field(default_factory=dict)
    totals: dict[str, torch.Tensor] = field(default_factory=dict)
    share: float = 1.0
    _results: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def once(self, function: Callable[["Case"], T]) -> T:
        """`function(case)`, computed at the first call and then remembered.

        Args:
            function: For example an intermediate result that several terms use.
        """
        if function not in self._results:
            self._results[function] = function(self)
        result: T = self._results[function]
        return result

    @cached_property
    def logits(self) -> torch.Tensor:
        """Logits over S_t at the targets' size, (B, |S_t|, H, W) float32."""
        return full_logits(self.student, self.targets.shape[-2:])

    @cached_property
    def teacher_logits(self) -> torch.Tensor:
        """The teacher's logits over S_{t-1}, (B, |S_{t-1}|, H, W) float32."""
        return full_logits(self.need_teacher(), self.targets.shape[-2:])

    @property
    def classes(self) -> int:
        """|S_t|, background included."""
        return 1 + sum(z.shape[1] - 1 for z in self.student.logits)

    @property
    def new_classes(self) -> int:
        """|C_t|."""
        return self.student.logits[-1].shape[1] - 1

    @property
    def old_classes(self) -> int:
        """|S_{t-1}|, background included."""
        return self.classes - self.new_classes

    @property
    def adaptation(self) -> torch.Tensor:
        """r_t, (B, h, w) logits."""
        return self.student.logits[-1][:, 0]

    def need_masks(self) -> Masks:
        """M⁺ and M⁻.

        Raises:
            ValueError: There are none, as at step 0.
        """
        if self.masks is None:
            raise ValueError(
                "Expected M⁺ and M⁻ for this loss term, but step 0 has neither. Remove "
                "the term from the `step_0_terms` of the head."
            )
        return self.masks

    def need_teacher(self) -> Outputs:
        """The teacher's outputs.

        Raises:
            ValueError: There are none.
        """
        if self.teacher is None:
            raise ValueError(
                "Expected the outputs of a teacher for a term that distils, but got "
                'none. State the need "teacher" in the term\'s entry.'
            )
        return self.teacher

    def need_replay(self) -> Drawn:
        """The drawn features of old classes.

        Raises:
            ValueError: There are none.
        """
        if self.replay is None:
            raise ValueError(
                "Expected drawn features of old classes, but got none. State the need "
                '"statistics" in the entry of the term.'
            )
        return self.replay


def full_logits(outputs: Outputs, size: Sequence[int]) -> torch.Tensor:
    """Logits over all classes at the size of an image, (B, |S|, H, W) float32."""
    logits = compose_logits([z.float() for z in outputs.logits])
    return upsample(logits, size)
