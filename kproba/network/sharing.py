"""Computes the first stages that two networks share only once.

Stages that are frozen (`frozen_stages`) are never trained, in step 0 either. Then
the student, its teacher and the network of the bank's features differ only in later
stages, and so do the two networks of an evaluation. The early stages have a high
resolution, so this saves a large part of a forward pass.
"""

import torch

from kproba.network.network import Outputs, SegmentationNetwork


def equal_stages(first: SegmentationNetwork, second: SegmentationNetwork) -> int:
    """Number of first stages of two backbones that are equal, bit by bit.

    Args:
        first: A network; the compared stages must be in evaluation mode.
        second: The other network.
    """
    ours, theirs = first.backbone, second.backbone
    kind = ours.name, ours.output_stride, ours.normalisation
    if kind != (theirs.name, theirs.output_stride, theirs.normalisation):
        return 0
    count = 0
    for one, other in zip(ours.stages(), theirs.stages(), strict=True):
        if not _equal(_tensors(one), _tensors(other)):
            break
        count += 1
    return count


def _tensors(stage: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All tensors that a stage uses, folded or not, without counters of batch norms."""
    tensors = dict(stage.named_parameters())
    buffers = dict(stage.named_buffers())
    kept = {n: b for n, b in buffers.items() if not n.endswith("num_batches_tracked")}
    return {**tensors, **kept}


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(tensor, other[name].to(tensor.device))
        for name, tensor in one.items()
    )


def forward_beside(
    network: SegmentationNetwork, outputs: Outputs, images: torch.Tensor, shared: int
) -> Outputs:
    """Outputs of a network, computed from the shared stages of another network.

    Args:
        network: Computes the stages that are not shared.
        outputs: Outputs of the other network; its `shared_stages` are at least
            `shared`.
        images: (B, 3, H, W) uint8, the images of these outputs.
        shared: Number of shared first stages; 0: compute all stages.
    """
    if not shared:
        alone: Outputs = network(images)
        return alone
    done = [stage.detach() for stage in outputs.stages[:shared]]
    return network.go_on(done[-1], done)


def frozen_stages(network: SegmentationNetwork) -> int:
    """Number of first stages of a backbone that are frozen."""
    count = 0
    for stage in network.backbone.stages():
        if any(parameter.requires_grad for parameter in stage.parameters()):
            break
        count += 1
    return count
