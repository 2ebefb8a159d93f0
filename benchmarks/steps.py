"""One iteration of an increment of ADE20K 100-5, as `kproba.training.loop` runs it.

It uses noise and untrained networks, because the time does not depend on weights.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.case import Case, on_device, untrained, with_first_stages_of
from benchmarks.inferring import noise_bank
from benchmarks.inputs import images_of, targets_of
from benchmarks.measuring import ROOT
from kproba.bank.fusion import Combination
from kproba.bank.teacher import BankTeacher
from kproba.data.loaders import Batch
from kproba.methods.terms import STAGES
from kproba.network.network import add_branch
from kproba.network.sharing import forward_beside
from kproba.plan.chain import Run
from kproba.plan.plan import Plan
from kproba.plan.schema import check
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.training.checkpoint import Progress, StopFlag
from kproba.training.iteration import Learner, Tally
from kproba.training.networks import (
    Networks,
    networks_of_loop,
    parallelise,
    unwrap,
)
from kproba.training.optimizer import autocast_type, build_optimizer
from kproba.training.settings import StepSettings
from kproba.training.targets import global_counts, prepare

OLD, NEW = 100, 5
METHODS = ("finetune", "lwf", "mib", "plop", "ssul_light", "barm", "kproba")
PARTS = ("backbone", "aspp", "branch", "old_branches")


@cache
def plan_of(case: Case) -> Plan:
    """The published settings of ADE20K, in steps of five classes, for a case."""
    path = ROOT / "config" / "ade20k.yaml"
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["experiments"] = [
        {"dataset": "ade20k", "task": "100-5", "methods": list(METHODS)}
    ]
    config["model"] |= {
        "backbone": case.backbone,
        "aspp_channels": case.channels,
        "frozen_stages": case.frozen_stages,
    }
    config["increment"]["batch_size"] = case.batch
    config["augmentation"]["crop_size"] = case.crop
    schema = ROOT / "workflow" / "schemas" / "config.schema.yaml"
    return Plan(check(config, schema))


def settings_of(
    case: Case, method: str, precision: str
) -> tuple[StepSettings, StepSettings]:
    """Settings of step 0 and of step 1 of a method, with the teachers of step 2."""
    plan = plan_of(case)
    planned = plan.methods[method]
    content = plan.settings(Run("ade20k", "100-5", "overlap", method, 0), 1)
    # Untrained networks and noise would diverge at the published rates.
    content["optimisation"] = {
        **content["optimisation"],
        "learning_rate": dict.fromkeys(PARTS, 1e-8),
        "precision": precision,
    }
    if planned.method.bank_teaches:  # as from step 2 on
        content["decision"] = planned.decision
    base = Run("ade20k", "100", "overlap", planned.method.base, 0)
    first = StepSettings.from_dict(plan.settings(base, 0))
    return first, StepSettings.from_dict(content)


def build_networks(case: Case, first: StepSettings, settings: StepSettings) -> Networks:
    """Student and teachers, as `kproba.training.networks.build_networks` does it."""
    method, device = settings.method, case.device
    assert first.architecture is not None
    build = (first.architecture, OLD, device)
    teacher = untrained(*build, crop=case.crop)
    student = add_branch(
        *(teacher, NEW), seed=0, start_from_background=method.start_from_background
    )
    student.keep_stages = teacher.keep_stages = STAGES in method.needs
    student = on_device(student.requires_grad_(True), device)
    student.set_training_mode(batch_norm=False)
    if method.trains != "all":
        student.train_only(method.trains)
    if not method.distils:
        return Networks(student)
    bank_teacher = None
    if settings.decision is not None:
        # The network of step 0 differs from that of step t-1 but for frozen stages.
        features = untrained(*build, crop=case.crop, seed=1)
        with_first_stages_of(features, teacher, case.frozen_stages)
        bank = noise_bank(case, 1 + OLD, features.backbone.channels)
        combination = Combination(bank, settings.decision, features)
        bank_teacher = BankTeacher(teacher, combination)
    return Networks(student, teacher, bank_teacher)


class Step:
    """One iteration of an increment; a call runs it.

    Args:
        case: Device and sizes.
        method: A method of the plan.
        precision: As in the configuration.
        folded: Whether batch norms are folded and first stages shared, as the loop does
            it; otherwise the networks are as they were built.
        compute: Options of the machine.
    """

    def __init__(
        self,
        case: Case,
        method: str,
        precision: str,
        *,
        folded: bool = True,
        compute: Compute | None = None,
    ):
        self.case, self.process = case, Process(device=case.device)
        first, self.settings = settings_of(case, method, precision)
        networks = build_networks(case, first, self.settings)
        self.student = networks.student
        self.precision = autocast_type(precision, case.device)
        optimizer = build_optimizer(self.student, self.settings.optimisation)
        options = replace(compute or Compute(), gpus=int(case.kind == "cuda"))
        if folded:
            network, networks = networks_of_loop(
                networks, self.settings, options, self.process
            )
        else:
            network = parallelise(self.student, self.settings, self.process)
        scaled = self.precision == torch.float16
        self.learner = Learner(
            network=network,
            networks=networks,
            optimizer=optimizer,
            scaler=torch.amp.GradScaler(case.kind, enabled=scaled),
            precision=self.precision,
            settings=self.settings,
            process=self.process,
        )
        self.batch = _batch(case)
        self.tally = Tally(Progress())

    def __call__(self) -> None:
        """Targets, forward passes, losses, backward pass, optimiser."""
        prepared = [prepare(self.batch, self.student, self.settings)]
        counts, *_ = global_counts(prepared, StopFlag(), False, self.process)
        self.learner.iterate(0, prepared, counts, self.tally)

    def passes(self) -> None:
        """The necessary passes through the same networks."""
        self.learner.optimizer.zero_grad(set_to_none=True)
        network, networks = unwrap(self.learner.network), self.learner.networks
        images = self.batch.images.to(self.case.device, non_blocking=True)
        network.dropout.keys = self.batch.keys
        mixed = self.precision != torch.float32
        with torch.autocast(self.case.kind, self.precision, enabled=mixed):
            outputs = network(images)
            if networks.teacher is not None:
                shared = networks.shared_stages
                with torch.no_grad():
                    forward_beside(networks.teacher, outputs, images, shared)
        torch.stack([z.float().sum() for z in outputs.logits]).sum().backward()

    def flops(self) -> int:
        """Floating-point operations of an iteration: convolutions and products."""
        with FlopCounterMode(display=False) as counter:
            self()
        return int(counter.get_total_flops())


def _batch(case: Case) -> Batch:
    images = images_of(case.batch, case.crop)
    targets = targets_of(case.batch, case.crop, 1 + OLD + NEW)
    if case.kind == "cuda":
        images, targets = images.pin_memory(), targets.pin_memory()
    ids = [str(number) for number in range(case.batch)]
    return Batch(images, targets, ids, torch.arange(case.batch))
