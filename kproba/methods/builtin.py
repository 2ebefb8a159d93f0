"""TODO methods.builtin."""

from kproba.methods.method import Method
from kproba.methods.terms import LossWeights

BARM_LOSSES = LossWeights(bga_ce=1.0, bga_t=5.0, gkd=1.0, bfd=4.0)


SURE = {"rule": "confidence", "threshold": 0.7}


METHODS = {
    # BARM with prototypes, which join in the prediction and from step 2 on in what the
    # old branches are taught. The configuration may name another rule for its labels.
    "kproba": Method(losses=BARM_LOSSES, teacher="fused", prediction="fused"),
    # Zhang & Gao, ECCV 2024.
    "barm": Method(losses=BARM_LOSSES, pseudo_labels=SURE),
    # Cha et al., NeurIPS 2021, without memory and without saliency: what is old stays
    # as it is, the new branch alone learns.
    "ssul": Method(pseudo_labels=SURE, trains="newest"),
    # Douillard et al., CVPR 2021.
    "plop": Method(
        cross_entropy="ce",
        losses=LossWeights(pod=0.01, pod_logits=0.0005),
        pseudo_labels={"rule": "entropy"},
        start_from_background=True,
        scale_by_certainty=True,
    ),
    # Cermelli et al., CVPR 2020.
    "mib": Method(
        cross_entropy="unbiased_ce",
        losses=LossWeights(unbiased_kd=10.0),
        use_pseudo_labels=False,
        start_from_background=True,
    ),
    # Li & Hoiem, ECCV 2016.
    "lwf": Method(
        cross_entropy="ce", losses=LossWeights(kd=1.0), use_pseudo_labels=False
    ),
    # The lower bound: kproba's network trained on the new labels, nothing protected.
    "finetune": Method(cross_entropy="bce", use_pseudo_labels=False),
    # The upper bound: one training on the labels of all classes.
    "joint": Method(joint=True, cross_entropy="bce", use_pseudo_labels=False),
}


# Step 0, once for all methods with the same form of output; also trains `joint`.
BASES = {
    "base": METHODS["joint"],
    "base_softmax": Method(joint=True, cross_entropy="ce", use_pseudo_labels=False),
}


def base_of(method: Method) -> str:
    """The name under which a method's step 0 is trained."""
    return "base_softmax" if method.softmax else "base"
