"""The methods that come with the package."""

from kproba.methods.method import PRETRAINED, Method, Recipe
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
        # The authors' scripts for ADE20K.
        recipes=(
            Recipe(kinds=("ade20k",), losses={"pod": 0.001, "pod_logits": 0.00001}),
        ),
    ),
    # Cermelli et al., CVPR 2020.
    "mib": Method(
        head="softmax",
        cross_entropy="unbiased_ce",
        losses={"unbiased_kd": 10.0},
        use_pseudo_labels=False,
        start_from_background=True,
        # The author's advice: issues 22 and 43 of github.com/fcdl94/MiB.
        recipes=(
            Recipe(kinds=("voc",), tasks=("15-1",), losses={"unbiased_kd": 100.0}),
        ),
    ),
    # Baek et al., NeurIPS 2022.
    "dkd": Method(
        head="auxiliary",
        cross_entropy="new_bce",
        losses={
            "auxiliary": 1.0,
            "class_kd": 5.0,
            "positive_kd": 5.0,
            "negative_kd": 5.0,
        },
        use_pseudo_labels=False,
        dropout=False,
        recipes=(Recipe(kinds=("ade20k",), options={"positive_weight": 35.0}),),
    ),
    # Chen et al., NeurIPS 2023.
    "star": Method(
        head="sigmoid",
        cross_entropy="replayed_bce",
        losses={"feature_kd": 5.0, "contrast": 0.05},
        options={"positive_weight": 4.0},
        use_pseudo_labels=False,
        dropout=False,
        recipes=(Recipe(kinds=("ade20k",), options={"positive_weight": 30.0}),),
    ),
    # Li & Hoiem, ECCV 2016, with the weight of the field.
    "lwf": Method(
        head="softmax",
        cross_entropy="ce",
        losses={"kd": 100.0},
        use_pseudo_labels=False,
    ),
    # SegACIL, arXiv 2412.10834: a ridge regression on features of step 0's network,
    # which predicts alone, the background included. No network is trained again.
    "ridge": Method(
        cross_entropy="bce",
        trains="nothing",
        prediction="ridge",
        pseudo_labels={"rule": "ridge", "score_threshold": 0.6},
        bank={"network": "base", "feature": "block", "sizes": ["image"]},
        decision={
            "foreground": "both",
            "probability_weight": 0,
            "posterior_weight": 1,
            "foreground_bias": 0,
            "image_prior": 0,
        },
    ),
    # For comparison: kproba's network, trained on the new labels without protection.
    "finetune": Method(cross_entropy="bce", use_pseudo_labels=False),
    # For comparison: trained on everything at once, with a sigmoid per class or with
    # one softmax.
    "joint": Method(joint=True, cross_entropy="bce", use_pseudo_labels=False),
    "joint_softmax": Method(
        head="softmax", joint=True, cross_entropy="ce", use_pseudo_labels=False
    ),
}


def base_methods() -> dict[str, Method]:
    """The trainings of step 0 by name, one per head; `joint` also counts as step 0.

    The last one trains nothing: it is the network of step 0 before its training, whose
    backbone has never been fine-tuned.
    """
    bases = {
        head.base: Method(
            head=head.name,
            cross_entropy=head.step_0_loss,
            losses=head.step_0_terms,
            options=head.step_0_options,
            recipes=tuple(
                Recipe(kinds=(kind,), options=options)
                for kind, options in head.step_0_options_of.items()
            ),
            joint=True,
            use_pseudo_labels=False,
        )
        for head in HEADS.values()
    }
    pretrained = Method(
        cross_entropy="bce", joint=True, trains="nothing", use_pseudo_labels=False
    )
    return {**bases, PRETRAINED: pretrained}
