"""TODO methods.rules."""

# The rules of `kproba.methods.labels` with the settings that each reads, those among
# them that read the bank, and those that score every class by network and bank.
SCORE = ("score_threshold", "foreground", "probability_weight", "image_prior")


POSTERIOR = ("posterior_weight", "foreground_bias")


RULES: dict[str, tuple[str, ...]] = {
    "lda": (*SCORE, *POSTERIOR),
    "klda": (*SCORE, *POSTERIOR),
    "kappa": (*SCORE, "temperature", "metric"),
    "confidence": ("threshold",),
    "argmax": (),
    "agree": ("threshold",),
    "entropy": (),
}


RULES_WITH_BANK = ("lda", "klda", "kappa", "agree")


RULES_THAT_SCORE = ("lda", "klda", "kappa")
