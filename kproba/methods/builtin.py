"""The methods that come with the package."""

from kproba.methods.method import Method
from kproba.network.heads import HEADS

BARM_LOSSES = {"bga_ce": 1.0, "bga_t": 5.0, "gkd": 1.0, "bfd": 4.0}
CONFIDENT = {"rule": "confidence", "threshold": 0.7}

METHODS: dict[str, Method] = {
    # BARM with prototypes. They are used in the evaluation and, from step 2 on, in the
    # targets of the old branches. The configuration may set another label rule.
    "kproba": Method(losses=BARM_LOSSES, teacher="fused", prediction="fused"),
    # Zhang & Gao, ECCV 2024.
    "barm": Method(losses=BARM_LOSSES, pseudo_labels=CONFIDENT),
    # Cha et al., NeurIPS 2021. New classes start from the unknown class, whose pixels
    # saliency maps show; backbone, ASPP and old classes are frozen.
    "ssul": Method(
        head="unknown",
        cross_entropy="unknown_bce",
        pseudo_labels=CONFIDENT,
        trains="newest",
    ),
    # The same idea without saliency maps, with the network of BARM: all old parts are
    # frozen, and only the new branch is trained.
    "ssul_light": Method(pseudo_labels=CONFIDENT, trains="newest"),
    # Douillard et al., CVPR 2021.
    "plop": Method(
        head="softmax",
        cross_entropy="certain_ce",
        losses={"pod": 0.01, "pod_logits": 0.0005},
        pseudo_labels={"rule": "entropy"},
        start_from_background=True,
    ),
    # Cermelli et al., CVPR 2020.
    "mib": Method(
        head="softmax",
        cross_entropy="unbiased_ce",
        losses={"unbiased_kd": 10.0},
        use_pseudo_labels=False,
        start_from_background=True,
    ),
    # Li & Hoiem, ECCV 2016.
    "lwf": Method(
        head="softmax",
        cross_entropy="ce",
        losses={"kd": 1.0},
        use_pseudo_labels=False,
    ),
    # For comparison: kproba's network, trained on the new labels without protection.
    "finetune": Method(cross_entropy="bce", use_pseudo_labels=False),
    # For comparison: one training on the labels of all classes.
    "joint": Method(joint=True, cross_entropy="bce", use_pseudo_labels=False),
}


def base_methods() -> dict[str, Method]:
    """The trainings of step 0 by name, one per head; `joint` also counts as step 0."""
    return {
        head.base: Method(
            head=head.name,
            cross_entropy=head.step_0_loss,
            losses=head.step_0_terms,
            options=head.step_0_options,
            joint=True,
            use_pseudo_labels=False,
        )
        for head in HEADS.values()
    }
