"""One iteration of the optimizer: forward, loss and backward of a global batch."""

import contextlib
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kproba.methods.losses.case import Case, Counts, Masks
from kproba.methods.losses.step import own_totals, step_losses
from kproba.methods.replay import Drawn
from kproba.network.network import Outputs
from kproba.network.sharing import forward_beside
from kproba.runtime.distributed import Process
from kproba.training.checkpoint import Progress
from kproba.training.networks import Networks, unwrap
from kproba.training.settings import StepSettings
from kproba.training.targets import Prepared


@dataclass(frozen=True)
class Learner:
    """Everything that an iteration of the optimizer uses.

    Attributes:
        network: The student, over several processes if there are.
        networks: The student and its teachers, from `networks_of_loop`.
        optimizer, scaler: Optimizer and loss scaler of the student.
        precision: Type of autocast; float32 for none.
        settings: Settings of the step.
        process: This process of several.
        accumulation: Micro-batches per iteration and process.
    """

    network: nn.Module
    networks: Networks
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    precision: torch.dtype
    settings: StepSettings
    process: Process
    accumulation: int = 1

    @property
    def parts(self) -> int:
        """Number of micro-batches of a global batch, over all processes."""
        return self.process.world_size * self.accumulation

    def iterate(
        self,
        iteration: int,
        prepared: list[Prepared],
        counts: Counts,
        tally: "Tally",
    ) -> None:
        """Update the weights with the gradient of a global batch.

        Args:
            iteration: Number of the iteration; it determines what is drawn.
            prepared: This process's micro-batches of it.
            counts: Denominators over the global batch.
            tally: Gets the value of every term.
        """
        self.optimizer.zero_grad(set_to_none=True)
        totals = None
        if len(prepared) > 1 and self.settings.method.needs_totals:
            totals = self._totals_of_all(prepared, counts)
        for number, part in enumerate(prepared):
            last = number == len(prepared) - 1
            replay = self._draw(iteration, number)
            losses = self._backward(part, counts, totals, replay, synchronise=last)
            tally.add(losses, part.batch.ids)
        # Clipping needs the true gradients, not the ones scaled for float16.
        self.scaler.unscale_(self.optimizer)
        if self.settings.optimisation.gradient_clip is not None:
            nn.utils.clip_grad_norm_(
                self.network.parameters(), self.settings.optimisation.gradient_clip
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        tally.settle(all_but_newest=True)

    @torch.no_grad()
    def _totals_of_all(
        self, prepared: list[Prepared], counts: Counts
    ) -> dict[str, torch.Tensor]:
        """Sums over the global batch, from a forward pass of its own.

        They must be known before the first backward pass. With a single micro-batch,
        the pass of the training is enough.
        """
        inner, sums = unwrap(self.network), dict[str, torch.Tensor]()
        for part in prepared:
            case = self._case(part, counts, inner)
            for name, value in own_totals(case, self.settings.method.terms).items():
                sums[name] = sums[name] + value if name in sums else value
        return self._add_up(sums)

    def _add_up(self, sums: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Sums of all processes, by term, in float64."""
        sums = {name: value.detach().double() for name, value in sums.items()}
        for value in sums.values():
            self.process.add_up(value)
        return sums

    def _backward(
        self,
        prepared: Prepared,
        counts: Counts,
        totals: dict[str, torch.Tensor] | None,
        replay: Drawn | None,
        *,
        synchronise: bool,
    ) -> dict[str, torch.Tensor]:
        """Forward and backward of one micro-batch; returns the value of every term."""
        # Gradients are exchanged once per iteration, with the last micro-batch.
        exchange = contextlib.nullcontext()
        if not synchronise and isinstance(self.network, DistributedDataParallel):
            exchange = self.network.no_sync()  # type: ignore[assignment]
        with exchange:
            case = self._case(prepared, counts, self.network, replay)
            if totals is None:
                totals = self._add_up(own_totals(case, self.settings.method.terms))
            case.totals.update(totals)
            losses = step_losses(case, self.settings.method.terms)
            total = torch.stack(list(losses.values())).sum()
            # DDP averages gradients over processes; ours are parts of a sum.
            self.scaler.scale(total * self.process.world_size).backward()
        return {name: value.detach() for name, value in losses.items()}

    def _draw(self, iteration: int, number: int) -> Drawn | None:
        """The drawn features for a micro-batch of this process."""
        if self.networks.replay is None:
            return None
        part = self.process.rank * self.accumulation + number
        return self.networks.replay.draw(iteration, part, self.parts)

    def _case(
        self,
        prepared: Prepared,
        counts: Counts,
        network: nn.Module,
        replay: Drawn | None = None,
    ) -> Case:
        """The inputs of the loss terms for a micro-batch, from a forward pass."""
        device, (batch, masks, certainty) = self.process.device, prepared
        images = batch.images.to(device, non_blocking=True)
        targets = batch.targets.to(device, non_blocking=True)
        if masks is not None:
            masks = Masks(*(mask.to(device, non_blocking=True) for mask in masks))
        if certainty is not None:
            certainty = certainty.to(device, non_blocking=True)
        # The dropout of an image depends only on the seed and its position in the
        # stream.
        unwrap(self.network).dropout.keys = batch.keys + (self.settings.seed << 32)
        with self._autocast(enabled=self.precision != torch.float32):
            outputs = network(images)
            teacher_outputs = self._teacher_outputs(images, outputs, masks)
        return Case(
            student=outputs,
            targets=targets,
            counts=counts,
            masks=masks,
            teacher=teacher_outputs,
            certainty=certainty,
            replay=replay,
            options=self.settings.method.read_options,
            share=1 / self.parts,
        )

    def _autocast(self, *, enabled: bool) -> torch.autocast:
        kind = self.process.device.split(":")[0]
        return torch.autocast(kind, self.precision, enabled=enabled)

    @torch.no_grad()
    def _teacher_outputs(
        self, images: torch.Tensor, outputs: Outputs, masks: Masks | None
    ) -> Outputs | None:
        """The teacher's outputs for a micro-batch, corrected by the bank if needed.

        None if no term needs a teacher.
        """
        teacher, bank_teacher = self.networks.teacher, self.networks.bank_teacher
        if teacher is None:
            return None
        if self.settings.method.trains == "all":
            shared = self.networks.shared_stages
            teacher_outputs = forward_beside(teacher, outputs, images, shared)
        else:  # the backbone does not train, so its features are the student's
            teacher_outputs = teacher.heads(outputs.backbone.detach(), outputs.stages)
        if bank_teacher is None or masks is None:
            return teacher_outputs
        features = bank_teacher.features(teacher_outputs, images)
        with self._autocast(enabled=False):
            return bank_teacher.correct(teacher_outputs, features, masks.background)


class HostCopy:
    """Asynchronous copy of a tensor to the host; the device continues computing."""

    def __init__(self, tensor: torch.Tensor):
        self.copied: torch.cuda.Event | None = None
        self.host = tensor
        if tensor.is_cuda:
            self.host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self.host.copy_(tensor, non_blocking=True)
            self.copied = torch.cuda.Event()
            self.copied.record()

    def values(self) -> list[float]:
        """The numbers; waits until they are copied."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.host.tolist()


class Tally:
    """Adds up the terms of the iterations, one iteration late.

    Reading a value from a GPU waits for its computation. One iteration later, the value
    is ready, and the GPU stays busy.
    """

    def __init__(self, progress: Progress):
        self.progress = progress
        self.ids: list[str] = []  # images of the last micro-batch
        self.pending: list[tuple[list[str], HostCopy, list[str]]] = []
        self.newest = 0  # pending values of this iteration

    def add(self, losses: dict[str, torch.Tensor], ids: list[str]) -> None:
        """Add the terms of a micro-batch of the current iteration."""
        self.ids = ids
        terms = HostCopy(torch.stack(list(losses.values())))
        self.pending.append((list(losses), terms, ids))
        self.newest += 1

    def settle(self, *, all_but_newest: bool = False) -> None:
        """Add what is pending to the sums.

        Raises:
            FloatingPointError: A term is not finite; the message names the images.
        """
        keep = self.newest if all_but_newest else 0
        ready = len(self.pending) - keep
        for names, terms, ids in self.pending[:ready]:
            values = dict(zip(names, terms.values(), strict=True))
            if not all(math.isfinite(value) for value in values.values()):
                raise FloatingPointError(
                    f"The loss is not finite ({values}){_remedy(ids)}"
                )
            sums = self.progress.sums
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value
        self.pending, self.newest = self.pending[ready:], 0


def check_weights(student: nn.Module, ids: list[str]) -> None:
    """Refuse weights that are not finite, before they are saved.

    Raises:
        FloatingPointError: A weight is not finite; the message names the last images.
    """
    squares = [parameter.detach().square().sum() for parameter in student.parameters()]
    if not torch.stack(squares).sum().isfinite():
        raise FloatingPointError(f"The weights are no longer finite{_remedy(ids)}")


def _remedy(ids: list[str]) -> str:
    return (
        f" in the batch with the images {', '.join(ids)}. Lower the learning rates or "
        f"set gradient_clip. The last saved state is kept."
    )
