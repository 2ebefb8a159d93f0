"""TODO training.iteration."""

import contextlib
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kproba.bank.teacher import Guide
from kproba.methods.losses.case import Counts, Masks
from kproba.methods.losses.step import step_losses
from kproba.methods.method import Method
from kproba.network.network import Outputs, SegmentationNetwork
from kproba.runtime.distributed import Process
from kproba.training.checkpoint import Progress
from kproba.training.networks import unwrap
from kproba.training.settings import StepSettings
from kproba.training.targets import Prepared


@dataclass(frozen=True)
class Descent:
    """An iteration of the optimiser.

    Attributes:
        network: The student as `wrap` returns it.
        teacher: Frozen; None if the method does not distil.
        guide: What teaches beside it; None: nothing does.
        optimizer, scaler: Of the student's parameters.
        precision: Of autocast; float32 for none.
        settings: Of the step.
        process: This one of several.
    """

    network: nn.Module
    teacher: SegmentationNetwork | None
    guide: Guide | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    precision: torch.dtype
    settings: StepSettings
    process: Process

    def iterate(self, prepared: list[Prepared], counts: Counts, tally: "Tally") -> None:
        """Change the weights by the gradient of a global batch.

        Args:
            prepared: This process's micro-batches of it.
            counts: Denominators over the global batch.
            tally: Notes the terms.
        """
        self.optimizer.zero_grad(set_to_none=True)
        for number, part in enumerate(prepared):
            last = number == len(prepared) - 1
            losses = self._backward(part, counts, synchronise=last)
            tally.add(losses, part.batch.ids)
        self.scaler.unscale_(self.optimizer)
        if self.settings.optimisation.gradient_clip is not None:
            nn.utils.clip_grad_norm_(
                self.network.parameters(), self.settings.optimisation.gradient_clip
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        tally.settle(all_but_newest=True)

    def _backward(
        self, prepared: Prepared, counts: Counts, *, synchronise: bool
    ) -> dict[str, torch.Tensor]:
        """Forward and backward of one micro-batch; returns the value of every term."""
        device = self.process.device
        batch, masks, certainty = prepared
        images = batch.images.to(device, non_blocking=True)
        targets = batch.targets.to(device, non_blocking=True)
        if masks is not None:
            masks = Masks(*(mask.to(device, non_blocking=True) for mask in masks))
        if certainty is not None:
            certainty = certainty.to(device, non_blocking=True)
        # Dropout of an image depends on the seed and its place in the stream alone.
        unwrap(self.network).dropout.keys = batch.keys + (self.settings.seed << 32)
        alone = contextlib.nullcontext()
        if not synchronise and isinstance(self.network, DistributedDataParallel):
            alone = self.network.no_sync()  # type: ignore[assignment]
        with alone:
            with torch.autocast(
                device.split(":")[0],
                self.precision,
                enabled=self.precision != torch.float32,
            ):
                outputs = self.network(images)
                taught = self._taught(images, outputs, masks)
            losses = step_losses(
                outputs, taught, targets, masks, counts, self.settings.recipe, certainty
            )
            total = torch.stack(list(losses.values())).sum()
            # DDP averages gradients over processes; ours are parts of a sum.
            self.scaler.scale(total * self.process.world_size).backward()
        return {name: value.detach() for name, value in losses.items()}

    @torch.no_grad()
    def _taught(
        self, images: torch.Tensor, outputs: Outputs, masks: Masks | None
    ) -> Outputs | None:
        """What the teachers say of a micro-batch; None if nobody teaches."""
        if self.teacher is None:
            return None
        taught = taught_by(self.teacher, images, outputs, self.settings.recipe)
        if self.guide is None or masks is None:
            return taught
        shown = self.guide.look(taught, images)
        with torch.autocast(self.process.device.split(":")[0], enabled=False):
            return self.guide.correct(taught, shown, masks.background)


def taught_by(
    teacher: SegmentationNetwork, images: torch.Tensor, outputs: Outputs, recipe: Method
) -> Outputs:
    """The teacher's outputs; a backbone that does not train is not run twice."""
    if recipe.trains == "all":
        taught: Outputs = teacher(images)
        return taught
    return teacher.heads(outputs.backbone.detach(), outputs.stages)


class Arrival:
    """Numbers on their way from the device, which works on."""

    def __init__(self, tensor: torch.Tensor):
        self.arrived: torch.cuda.Event | None = None
        self.host = tensor
        if tensor.is_cuda:
            self.host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self.host.copy_(tensor, non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def values(self) -> list[float]:
        """The numbers, once they are there."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.host.tolist()


class Tally:
    """Adds up the terms of the iterations, one iteration late.

    Reading a value from a GPU waits for it; when the next iteration has been handed
    over, the values are there and the GPU stays busy.
    """

    def __init__(self, progress: Progress):
        self.progress = progress
        self.ids: list[str] = []  # images of the last micro-batch
        self.pending: list[tuple[list[str], Arrival, list[str]]] = []
        self.newest = 0  # how many of the pending are of this iteration

    def add(self, losses: dict[str, torch.Tensor], ids: list[str]) -> None:
        """Note the terms of a micro-batch of the iteration at work."""
        self.ids = ids
        terms = Arrival(torch.stack(list(losses.values())))
        self.pending.append((list(losses), terms, ids))
        self.newest += 1

    def settle(self, *, all_but_newest: bool = False) -> None:
        """Add what is pending to the sums.

        Raises:
            FloatingPointError: A term is not finite; names the images.
        """
        keep = self.newest if all_but_newest else 0
        ready = len(self.pending) - keep
        for names, terms, ids in self.pending[:ready]:
            values = dict(zip(names, terms.values(), strict=True))
            if not all(math.isfinite(value) for value in values.values()):
                raise FloatingPointError(
                    f"The loss is not finite ({values}){_mend(ids)}"
                )
            sums = self.progress.sums
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value
        self.pending, self.newest = self.pending[ready:], 0


def check_weights(student: nn.Module, ids: list[str]) -> None:
    """Refuse weights that are not finite, before they are saved.

    Raises:
        FloatingPointError: Names the images of the last iteration.
    """
    squares = [parameter.detach().square().sum() for parameter in student.parameters()]
    if not torch.stack(squares).sum().isfinite():
        raise FloatingPointError(f"The weights are not finite any more{_mend(ids)}")


def _mend(ids: list[str]) -> str:
    return (
        f" at images {ids}. Lower the learning rates or set gradient_clip. The last "
        f"saved state is kept."
    )
