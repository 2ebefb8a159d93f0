"""Inputs for tests of the losses, and plain formulas that several of them need."""

import torch
import torch.nn.functional as F

from kproba.methods.losses.case import Case, Counts, cell_masks
from kproba.methods.losses.step import step_losses
from kproba.network.network import Outputs

BATCH, CELLS, PIXELS, WIDTH = 4, (2, 3), (6, 9), 5
CLASSES = (2, 1, 2)  # S_t = background, 1 2 | 3 | 4 5
FIRST_NEW, CHANNELS = 4, 6
LEARNING = (0, 4, 5)


def random(*shape, seed, scale=1.5):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator)


def branch_logits(seed):
    """Logits of the three branches, each with an entry for its background."""
    return [random(BATCH, 1 + n, *CELLS, seed=seed + k) for k, n in enumerate(CLASSES)]


def uneven_targets():
    """Targets with an image without labels and one without new classes."""
    generator = torch.Generator().manual_seed(5)
    targets = torch.randint(0, CHANNELS, (BATCH, *PIXELS), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < 0.15] = 255
    targets[1] = 255
    targets[2][targets[2] >= FIRST_NEW] = 0  # M⁺ lies in the images 0 and 3 alone
    return targets.to(torch.uint8)


def leaves(tensors, dtype=torch.float32):
    """Copies of tensors that collect gradients."""
    return [t.detach().to(dtype).requires_grad_() for t in tensors]


def gradients(value, tensors):
    return torch.autograd.grad(
        value, tensors, allow_unused=True, materialize_grads=True
    )


def assert_same(ours, plain, our_leaves, plain_leaves):
    """Compare a loss and its gradients with those of a plain formula."""
    torch.testing.assert_close(ours.double(), plain, rtol=1e-5, atol=1e-6)
    for actual, expected in zip(
        gradients(ours, our_leaves), gradients(plain, plain_leaves), strict=True
    ):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-7)


def binary_cross_entropy(z, target):
    p = 1 / (1 + torch.exp(-z))
    return -(target * torch.log(p) + (1 - target) * torch.log(1 - p))


def falling(r):
    return torch.where(r < 0, r, 0.0)


def classes_of(branches):
    return [z[:, c] for z in branches for c in range(1, z.shape[1])]


def plain_logits(logits):
    """The composed logits, (B, classes, h, w)."""
    background = logits[0][:, 0]
    for z in logits[1:]:
        background = background + falling(z[:, 0])
    return torch.stack([background, *classes_of(logits)], dim=1)


def plain_protected_logits(logits):
    """The composed logits for training: old branches are constants."""
    *earlier, newest = logits
    fixed = plain_logits(earlier).detach()
    background = fixed[:, 0] + newest[:, 0]
    old = [fixed[:, c] for c in range(1, fixed.shape[1])]
    return torch.stack([background, *old, *classes_of([newest])], dim=1)


def plain_bce_per_channel(logits, targets):
    """Mean over labelled pixels, for each channel."""
    size = tuple(targets.shape[-2:])
    z = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    terms = [[] for _ in range(z.shape[1])]
    for image, labels in zip(z, targets.tolist(), strict=True):
        for row, line in enumerate(labels):
            for column, label in enumerate(line):
                if label == 255:
                    continue
                for channel, channel_terms in enumerate(terms):
                    one_hot = float(channel == label)
                    pixel = image[channel, row, column]
                    channel_terms.append(binary_cross_entropy(pixel, one_hot))
    return torch.stack([torch.stack(t).mean() for t in terms])


def counts_of(targets, masks):
    return Counts(
        pixels=float((targets != 255).sum()),
        new=float(masks.new.sum()),
        background=float(masks.background.sum()),
        cells=float(masks.new.numel()),
        images=float(len(targets)),
        area=float(targets.numel()),
        remaining=float(masks.remaining.sum()),
    )


def masks_and_counts(targets):
    """Masks and counts of the losses for targets."""
    masks = cell_masks(targets, FIRST_NEW, CELLS, sequential=False)
    return masks, counts_of(targets, masks)


def outputs_of(blocks, logits):
    return Outputs(torch.zeros(BATCH, 1, *CELLS), blocks, logits)


def losses_of(method, *parts, **more):
    """The terms of an increment by a method, of the parts of a `Case`."""
    return step_losses(Case(*parts, **more), method.terms)
