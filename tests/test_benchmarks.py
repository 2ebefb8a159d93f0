"""The benchmarks of steps and inference work, at sizes that take a moment."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_sizes, testing, training
from benchmarks.case import SMALL, Case
from benchmarks.inferring import KINDS, WORKS, distinct_shapes, many_sizes
from benchmarks.profiles import Row, counts
from benchmarks.steps import Step

ROOT = Path(__file__).parents[1]
TRIAL = ("--device", "cpu", "--small", "--workers", "2")


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("part", "rows"),
    [
        ("iterations", ["float32", "bfloat16"]),
        ("gains", ["plain networks", "folded, first stages", "or `compute.compile`"]),
        ("sizes", [f"canvases: {work}" for work in WORKS] + ["own sizes: bank"]),
        ("inference", ["bank, LDA", "test, network and LDA, two networks with 4"]),
        ("profile", ["`aten::mkldnn_convolution`", "`aten::convolution_backward`"]),
        ("methods", ["`finetune`", "`plop`", "`kproba`"]),
        ("loading", ["0 workers", "2 workers"]),
    ],
)
def test_every_part_prints_its_table(part, rows, capsys):
    gpu.main([part, *TRIAL])
    output = capsys.readouterr().out
    assert "failed" not in output
    for row in rows:
        assert f"\n| {row}" in output, output


def test_canvases_give_a_network_fewer_shapes():
    shapes = {kind: distinct_shapes(gpu_sizes.pictures(SMALL, kind)) for kind in KINDS}
    assert shapes["one size"] == 1
    assert shapes["canvases"] < 8 < shapes["own sizes"] == 24


def test_works_are_measured_in_a_process_of_their_own(capsys):
    gpu_sizes.main(["canvases", "bank", "test, network", "--small"])
    lines = capsys.readouterr().out.splitlines()
    one, other = (gpu_sizes.Timed(*json.loads(line)) for line in lines)
    assert (one.work, one.first, other.first) == ("bank", True, False)
    assert one.cold > 0 and one.warm > 0


def test_what_a_process_measured_before_its_end_counts(monkeypatch):
    text = json.dumps(["canvases", "bank", 2.0, 1.0, 3, True])
    program = f"print({text!r}, flush=True); import time; time.sleep(60)"
    words = [sys.executable, "-c", program]
    monkeypatch.setattr(gpu_sizes, "_command", lambda *_: words)
    monkeypatch.setattr(gpu_sizes, "SECONDS", 2)
    found = gpu_sizes._in_own_process(SMALL, "canvases", ["bank"])
    assert next(found).cold == 2.0
    with pytest.raises(RuntimeError, match="not finished after 2 s"):
        next(found)


def test_a_part_that_fails_does_not_stop_the_next_one(monkeypatch, capsys):
    def fail():
        raise ValueError("out of something")

    jobs = {"methods": fail, "loading": lambda: print("loaded")}
    monkeypatch.setattr(gpu, "jobs_of", lambda *_: jobs)
    with pytest.raises(SystemExit) as error:
        gpu.main(["methods", "loading", *TRIAL])
    assert error.value.code == 1
    output = capsys.readouterr().out
    assert "**methods failed**: ValueError: out of something\nloaded" in output


def test_a_part_that_takes_too_long_is_stopped(capsys):
    assert not gpu.run_apart("loading", 0.2, 1)
    assert "**loading was stopped** after 0 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "product"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc", True),
        ("cudnn::cnn::dgrad_engine<float, 512, 6, 5>", True),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NNT", True),
        ("aten::addmm", True),
        ("void cudnn::ops::nchwToNhwcKernel<__half, conv>", False),
        ("void at::native::vectorized_elementwise_kernel<4, add>", False),
        ("void at::native::(anonymous namespace)::upsample_bilinear2d_out", False),
        ("void at::native::elementwise_kernel<direct_copy_kernel_cuda>", False),
    ],
)
def test_convolutions_and_matrix_products_are_told_from_the_rest(name, product):
    assert Row(name, 1, 1.0, 0.0, True).product == product


def test_kernels_are_counted_without_copies_and_launches_by_graph_too():
    rows = [
        Row("gemm", 5, 1.0, 0.0, True),
        Row("Memcpy HtoD", 3, 1.0, 0.0, True),
        Row("cudaLaunchKernel", 4, 0.0, 1.0, False),
        Row("cudaGraphLaunch", 2, 0.0, 1.0, False),
        Row("aten::mm", 5, 0.0, 1.0, False),
    ]
    assert counts(rows, Case("cuda:0")) == (5, 6)
    assert counts(rows, Case("cpu")) == (5, 0)


def test_pictures_of_many_sizes_are_always_the_same():
    sizes = many_sizes(1000)
    assert sizes == many_sizes(1000) and len(sizes) == 1000
    assert len(set(sizes)) == 150
    assert {max(size) for size in sizes} == {500}


def test_a_folded_step_learns_what_a_plain_one_does():
    plain, folded = (
        Step(SMALL, "kproba", "float32", folded=each) for each in (False, True)
    )
    for step in (plain, folded):
        step()
        step.tally.settle()
    one, other = plain.tally.progress.sums, folded.tally.progress.sums
    assert one == pytest.approx(other, rel=1e-3)
    assert folded.learner.networks.shared_stages == 3
    assert folded.flops() < plain.flops()


def test_groups_of_the_cpu_can_be_measured(monkeypatch):
    monkeypatch.setattr(training, "INCREMENTS", {"tiny": (1, SMALL)})
    results = training.increments()
    results.append(testing._two_networks("tiny", "efficientnet_lite0", 4, 1, 65))
    results += testing.sizes(count=20, different=4, long=64, repeats=1)
    assert len(results) == 7
    assert all(result.ratio > 0 for result in results)


SCRIPT = ROOT / "benchmarks" / "on_gpu.sh"


@pytest.mark.workflow
def test_the_script_for_a_gpu_starts_every_command(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path)}
    done = subprocess.run(
        [SCRIPT, "--dry", "tests", "chain"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_the_whole_chain_on_a_gpu" in (tmp_path / "tests.log").read_text()
    assert (tmp_path / "summary.log").read_text().count(": done after") == 2


def test_the_script_for_a_gpu_names_a_wrong_argument():
    done = subprocess.run(
        [SCRIPT, "--fast"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 8
    assert "but got --fast" in done.stderr
