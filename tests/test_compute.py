"""What a machine offers a job: one object, from the configuration to the job."""

import argparse
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from kproba.plan.schema import load_schema
from kproba.runtime.compute import Compute

SCHEMA = Path(__file__).parents[1] / "workflow/schemas/config.schema.yaml"
CHANGED = Compute(
    gpus=4,
    device="cpu",
    nodes=2,
    processes=6,
    threads=3,
    workers=5,
    accumulation=7,
    batch_size=9,
    deterministic=True,
    compile=True,
    cuda_graphs=True,
    cache_gib=1.5,
    state_minutes=2.5,
    val_times=11,
    val_images=13,
    log_seconds=0.5,
)


def test_every_key_of_the_configuration_is_a_field_and_every_field_a_key():
    keys = load_schema(SCHEMA)["properties"]["compute"]["properties"]
    names = {field.name for field in fields(Compute)}
    assert set(keys) <= names
    assert names - set(keys) <= INTERNAL


# Nothing that a user would set.
INTERNAL = {"log_seconds"}


@pytest.mark.parametrize("compute", [Compute(), CHANGED], ids=["default", "changed"])
def test_json_holds_everything(compute):
    text = compute.to_json()
    assert len(text.splitlines()) == 1
    assert Compute.from_json(text) == Compute.from_dict(asdict(compute)) == compute


def test_the_example_changes_every_field():
    default = asdict(Compute())
    assert all(value != default[key] for key, value in asdict(CHANGED).items())


def test_what_is_left_out_has_its_default():
    assert Compute.from_json("{}") == Compute()
    assert Compute.from_json('{"threads": 2}') == Compute(threads=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"threads": 2, "looks": 4}', "Expected only the keys gpus, .* but got looks"),
        ("[1, 2]", "Expected a JSON object of options, but got"),
        ("threads=2", "Expecting value"),
    ],
)
def test_unknown_options_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Compute.from_json(text)


@pytest.mark.parametrize(
    ("compute", "cores"),
    [
        ({"processes": 3, "threads": 2, "workers": 8}, 6),
        ({"gpus": 2, "threads": 2, "workers": 8}, 16),
        ({"gpus": 2, "threads": 4, "workers": 2}, 8),
        ({"gpus": 4, "nodes": 2, "threads": 1, "workers": 3}, 6),
        ({"processes": 4, "nodes": 2, "threads": 3}, 6),
    ],
)
def test_cores_of_a_job_on_each_node(compute, cores):
    assert Compute(**compute).cores_per_node == cores


def test_the_part_of_one_node_has_its_share_and_all_other_options():
    part = CHANGED.on_one_node()
    expected = {**asdict(CHANGED), "nodes": 1, "gpus": 2, "processes": 3}
    assert asdict(part) == expected
    assert part.cores_per_node == CHANGED.cores_per_node
    assert part.on_one_node() == part
    # A job with GPUs has one process of its own, whatever the nodes.
    assert Compute(gpus=4, nodes=2).on_one_node() == Compute(gpus=2)


def test_a_wrong_argument_is_refused_with_its_reason(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--compute", type=Compute.from_argument, default=Compute())
    assert parser.parse_args(["--compute", '{"gpus": 2}']).compute == Compute(gpus=2)
    with pytest.raises(SystemExit):
        parser.parse_args(["--compute", '{"gpu": 2}'])
    assert "gpu" in (message := capsys.readouterr().err) and "xpected" in message
    with pytest.raises(SystemExit):
        parser.parse_args(["--compute", "[]"])
    assert "Expected a JSON object of options" in capsys.readouterr().err
