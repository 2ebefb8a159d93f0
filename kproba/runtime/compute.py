"""Compute options, as one object: they change the speed, but never a result."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True)
class Compute:
    """The section `compute` of the configuration, or the part of it for a job.

    A new option needs a key in the schema, a field here, and the code that uses it.
    Jobs get the whole object as one JSON argument.

    Attributes:
        gpus: GPUs of the job, over all nodes; 0: the CPU.
        device: Device of a job with GPUs: "cuda"; or "cpu" with one process per GPU, to
            try the set-up of a cluster without GPUs.
        nodes: Machines of the job.
        processes: Processes on the CPU, over all nodes, of a job without GPUs.
        threads: CPU threads of each process.
        workers: Loader processes of each process; 0 loads in the process itself.
        accumulation: Micro-batches per iteration and process.
        batch_size: Images per process and forward pass for bank, labels and evaluation.
        deterministic: Use only algorithms that give the same bytes on a GPU too.
        compile: Let `torch.compile` make kernels for the backbone.
        cuda_graphs: Replay the kernels of the backbones in increments, on one GPU.
        cache_gib: Memory per process for decoded training images, in GiB.
        state_minutes: Minutes between two saved states of a training.
        val_times: Number of validation checks in a training, for TensorBoard.
        val_images: Number of images in each check.
        log_seconds: Seconds between two log lines of a training.
    """

    gpus: int = 0
    device: Literal["cuda", "cpu"] = "cuda"
    nodes: int = 1
    processes: int = 1
    threads: int = 1
    workers: int = 0
    accumulation: int = 1
    batch_size: int = 8
    deterministic: bool = False
    compile: bool = False
    cuda_graphs: bool = False
    cache_gib: float = 0.0
    state_minutes: float = 5.0
    val_times: int = 0
    val_images: int = 0
    log_seconds: float = 15.0

    @property
    def cores_per_node(self) -> int:
        """CPU cores of the job on each node.

        Loader processes work while a GPU does; on the CPU they share the cores.
        """
        if self.gpus:
            return self.gpus // self.nodes * max(self.threads, self.workers)
        return self.processes // self.nodes * self.threads

    def on_one_node(self) -> "Compute":
        """The options for one node, for a job that only runs a network forward."""
        return Compute(
            **{
                **asdict(self),
                "nodes": 1,
                "gpus": self.gpus // self.nodes,
                "processes": max(1, self.processes // self.nodes),
            }
        )

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Compute":
        """From the section of a configuration.

        Raises:
            ValueError: An unknown key.
        """
        known = [field.name for field in fields(cls)]
        unknown = [key for key in content if key not in known]
        if unknown:
            raise ValueError(
                f"Expected only the keys {', '.join(known)}, but got "
                f"{', '.join(unknown)}."
            )
        return cls(**content)

    @classmethod
    def from_argument(cls, text: str) -> "Compute":
        """Read an argument of a command line, for argparse.

        Raises:
            ArgumentTypeError: As `from_json`, with its message.
        """
        try:
            return cls.from_json(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    @classmethod
    def from_json(cls, text: str) -> "Compute":
        """Read the text that `to_json` wrote.

        Raises:
            ValueError: No JSON object, or an unknown key.
        """
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError(f"Expected a JSON object of options, but got {text}.")
        return cls.from_dict(content)
