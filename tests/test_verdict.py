"""The message of an experiment, in sentences."""

import math

import pandas as pd
import pytest

from kproba.results.verdict import give_verdict


def rows(*lines: tuple) -> pd.DataFrame:
    """The last step of a summary: method, seed, all, forgetting; step 2."""
    names = ["method", "seed", "all", "forgetting"]
    return pd.DataFrame(lines, columns=names).assign(step=2)


KPROBA = ("kproba", 0, 63.47, 1.04)
FINETUNE = ("finetune", 0, 14.5, 56.9)
JOINT = ("joint", 0, 67.5, math.nan)


@pytest.mark.parametrize(
    ("lines", "text", "best"),
    [
        (
            [KPROBA, FINETUNE, JOINT],
            "After 3 steps kproba reaches 63.5 mIoU, 94 % of joint (67.5), which "
            "is trained on everything at once. It forgot 1.0 point; fine-tuning ends "
            "at 14.5.",
            "kproba",
        ),
        (
            [KPROBA],
            "After 3 steps kproba reaches 63.5 mIoU. It forgot 1.0 point.",
            "kproba",
        ),
        (
            [FINETUNE],
            "After 3 steps fine-tuning reaches 14.5 mIoU. It forgot 56.9 points.",
            "finetune",
        ),
        ([JOINT], "joint, trained on everything at once, reaches 67.5 mIoU.", None),
        (
            [KPROBA, JOINT, ("joint_softmax", 0, 70.0, math.nan)],  # the better one
            "After 3 steps kproba reaches 63.5 mIoU, 91 % of joint_softmax (70.0), "
            "which is trained on everything at once. It forgot 1.0 point.",
            "kproba",
        ),
        (
            [("kproba", 0, 68.5, math.nan), JOINT],
            "After 3 steps kproba reaches 68.5 mIoU, 1.0 point more than joint (67.5), "
            "which is trained on everything at once.",
            "kproba",
        ),
        (
            [KPROBA, ("mib", 0, 66.0, -0.5), FINETUNE],
            "After 3 steps mib reaches 66.0 mIoU. It forgot nothing: earlier classes "
            "gained 0.5 points; the next, kproba, reaches 63.5; fine-tuning ends at "
            "14.5.",
            "mib",
        ),
        (
            [("kproba", 0, 68.7, 0.02), JOINT],
            "After 3 steps kproba reaches 68.7 mIoU, 1.2 points more than joint "
            "(67.5), which is trained on everything at once. It forgot nothing.",
            "kproba",
        ),
        (
            [("kproba", 0, 67.3, 2.0), JOINT],
            "After 3 steps kproba reaches 67.3 mIoU, 99.7 % of joint (67.5), which "
            "is trained on everything at once. It forgot 2.0 points.",
            "kproba",
        ),
        (
            [("kproba", 0, 67.52, math.nan), JOINT],
            "After 3 steps kproba reaches 67.5 mIoU, as much as joint (67.5), which "
            "is trained on everything at once.",
            "kproba",
        ),
        (
            [("kproba", 0, math.nan, math.nan)],
            "There is no result after the last step yet.",
            None,
        ),
    ],
)
def test_verdict(lines, text, best):
    verdict = give_verdict(rows(*lines), {"joint", "joint_softmax"})
    assert verdict.text == text
    assert verdict.best == best
    assert verdict.notes == []


def test_verdict_never_calls_joint_training_a_bound():
    """A method may exceed it, as every sentence about it must allow."""
    for value in (60, 67.5, 70):
        verdict = give_verdict(rows(("kproba", 0, value, 1.0), JOINT), {"joint"})
        assert "bound" not in verdict.text
        assert ("more than" in verdict.text) == (value == 70)


def test_several_seeds_have_mean_and_deviation():
    lines = [KPROBA, ("kproba", 1, 65.47, 3.04), JOINT]
    verdict = give_verdict(rows(*lines), {"joint"})
    assert "kproba reaches 64.5 ± 1.4 mIoU" in verdict.text
    assert "It forgot 2.0 points." in verdict.text
    [note] = verdict.notes
    assert "up to 2 seeds" in note  # joint has one
    [note] = give_verdict(rows(*lines[:2]), {"joint"}).notes
    assert note == "Means ± standard deviations over 2 seeds."


def test_a_single_step_has_nothing_to_forget():
    verdict = give_verdict(rows(KPROBA, FINETUNE).assign(step=0), {"joint"})
    assert verdict.text == (
        "After one step kproba reaches 63.5 mIoU. Fine-tuning ends at 14.5."
    )


def test_of_many_methods_their_number_is_given():
    many = [(f"m{k}", 0, 40.0 + k, 1.5) for k in range(12)]
    verdict = give_verdict(rows(*many, FINETUNE), {"joint"})
    assert "the second of 13 methods, m10, reaches 50.0" in verdict.text


def test_a_method_of_another_name_may_be_joint_training():
    verdict = give_verdict(rows(KPROBA, ("offline", 0, 67.5, math.nan)), {"offline"})
    assert verdict.best == "kproba"
    assert "94 % of offline" in verdict.text


def test_absent_classes_are_named_with_their_effect():
    shown = rows(KPROBA)
    [note] = give_verdict(shown, set(), absent=["cow", "cat"]).notes
    assert note == (
        "No validation image shows cow, cat. Their IoU counts as 0 in the means."
    )
    [note] = give_verdict(shown, set(), absent=["cow"], left_out=True).notes
    assert note.endswith("These classes are left out of the means.")


def test_names_are_escaped():
    verdict = give_verdict(rows(("<i>&", 0, 50.0, 1.5)), set())
    assert "<b>&lt;i&gt;&amp;</b>" in verdict.lead
