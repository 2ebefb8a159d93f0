"""The loss terms: formulas as plain functions of tensors.

Every term is a sum divided by a count that the caller names. The loop passes counts of
the whole global batch. So the sum over processes and micro-batches is exactly the mean
over the global batch, even if new classes and background are unevenly distributed. An
empty selection has the sum 0 and contributes 0, never NaN.

Symbols: z logits, y raw label (0: background, old or future), ŷ pseudo-labelled target,
M⁺ = {y ∉ {0, 255}}, M⁻ = {y = 0}, r_t the background adaptation of the newest branch.
Sources: Zhang & Gao, ECCV 2024 (arXiv 2407.09838, BARM); Li & Hoiem, ECCV 2016 (arXiv
1606.09282, LwF); Cermelli et al., CVPR 2020 (arXiv 2002.00718, MiB); Douillard et al.,
CVPR 2021 (arXiv 2011.11390, PLOP); Cha et al., NeurIPS 2021 (arXiv 2106.11562, SSUL);
docs/methods/losses.md.

A function named `.._term` takes a `Case` and is an entry of `kproba.methods.terms`.
"""
