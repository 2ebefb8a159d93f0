"""The command `kproba`: runs the workflow, and uses the trained steps.

kproba init my-project
kproba run --configfile config/folder.yaml
kproba predict STEP photos/ --out predictions
kproba info STEP
kproba export STEP model.onnx
kproba pack STEP --out step.zip
kproba tensorboard results/digits/6-2-overlap
kproba choose results/summary.csv

Importing torch takes seconds. So each command imports only what it needs, and `--help`,
`--version` and errors in the arguments do not import torch.
"""

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from kproba import __version__
from kproba.data.tiles import TILE
from kproba.runtime.logs import exit_on_error, log_to_stderr


def run_init(options: argparse.Namespace) -> int:
    """Write a project folder; returns the exit status."""
    from kproba.project import init_project

    names = init_project(options.folder)
    print(f"Wrote {len(names)} files to {options.folder}; its README.md lists them.")
    print(f"Next: cd {shlex.quote(str(options.folder))} && kproba run")
    return 0


def run_run(options: argparse.Namespace) -> int:
    """Run the workflow; returns the exit status."""
    from kproba.project import run_workflow

    return run_workflow(options.words)


def run_predict(options: argparse.Namespace) -> int:
    """Segment images; returns the exit status."""
    from kproba.predict.predict import PredictSettings, segment_files

    settings = PredictSettings(
        out=options.out,
        overlays=not options.no_overlays,
        confidence=options.confidence,
        probabilities=options.probabilities,
        long_side=options.long_side,
        tile=options.tile,
        batch_size=options.batch_size,
    )
    return segment_files(options.step, options.files, settings, device=options.device)


def run_info(options: argparse.Namespace) -> int:
    """Print facts about a step; returns the exit status."""
    if options.card:
        from kproba.results.card import describe_card

        text = describe_card(options.step)
    else:
        from kproba.predict.info import describe

        text = "\n".join(describe(options.step)) + "\n"
    _print_text(text)
    return 0


def _print_text(text: str) -> None:
    """Print letters outside of the terminal's encoding too: they are no errors."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def run_export(options: argparse.Namespace) -> int:
    """Write a model file that runs without this package; returns the exit status."""
    from kproba.predict.export import export_step

    export_step(options.step, options.file)
    return 0


def run_pack(options: argparse.Namespace) -> int:
    """Write a step to one archive; returns the exit status."""
    from kproba.predict.pack import pack_step

    pack_step(options.step, options.out)
    return 0


def run_tensorboard(options: argparse.Namespace) -> int:
    """Show the training curves of all steps below a folder; returns the exit status."""
    from kproba.results.tensorboard import show_curves

    return show_curves(options.folder, port=options.port, host=options.host)


def run_choose(options: argparse.Namespace) -> int:
    """Choose among the methods of summaries; returns the exit status."""
    from kproba.results import choice

    chosen = choice.choose(
        choice.read_summaries(options.summaries),
        reference=options.reference,
        without=(*choice.JOINT, *options.without),
    )
    if options.out:
        choice.write_choice(chosen, options.out)
    _print_text(choice.describe_choice(chosen) + "\n")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line; each command sets `run` to its function."""
    parser = argparse.ArgumentParser(
        prog="kproba",
        description="Run the workflow. Predict with, inspect, export and pack trained "
        "steps. Choose among methods.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, add_arguments, run, description in COMMANDS:
        command = commands.add_parser(name, help=description, description=description)
        command.set_defaults(run=run)
        add_arguments(command)
    return parser


def _add_init_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "folder", type=Path, help="name of the folder, which may be new"
    )


def _add_run_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "words", nargs="*", metavar="...", help="options and targets of Snakemake"
    )


def _add_info_arguments(command: argparse.ArgumentParser) -> None:
    _add_step(command)
    command.add_argument(
        "--card",
        action="store_true",
        help="print the model card as Markdown in the Hugging Face format",
    )


def _add_export_arguments(command: argparse.ArgumentParser) -> None:
    _add_step(command)
    command.add_argument(
        "file",
        type=Path,
        help="output file; its name ends in .onnx, or in .pt for TorchScript",
    )


def _add_pack_arguments(command: argparse.ArgumentParser) -> None:
    _add_step(command)
    command.add_argument(
        "--out",
        type=Path,
        help="output archive, FILE.zip (default: named after the step). An existing "
        "archive that kproba pack wrote is replaced; any other file is kept and stops "
        "the command",
    )


def _add_tensorboard_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=Path("results"),
        help="folder of all results, of an experiment or of a step (%(default)s)",
    )
    command.add_argument("--port", type=int, default=6006, help="(%(default)s)")
    command.add_argument("--host", default="localhost", help="(%(default)s)")


def _add_choose_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "summaries",
        nargs="+",
        type=Path,
        metavar="SUMMARY.csv",
        help="tables of results, such as results/reports/NAME/summary.csv",
    )
    command.add_argument(
        "-o", "--out", type=Path, help="also write the table to this CSV file"
    )
    command.add_argument(
        "--reference",
        help="method that stays unless another one is better (default: the first)",
    )
    command.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="METHOD",
        help="method that is no alternative; may be given several times. joint and "
        "joint_softmax never are",
    )


def _add_step(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "step",
        help="an evaluated step: its folder, such as "
        "results/digits/6-2-overlap/kproba/seed0/step2, its predictor.json, or an "
        "archive written by kproba pack",
    )


def _add_predict_arguments(command: argparse.ArgumentParser) -> None:
    _add_step(command)
    command.add_argument(
        "files",
        nargs="+",
        help="images, folders, or - for a list of paths on standard input",
    )
    command.add_argument(
        "--out",
        type=Path,
        default=Path("predictions"),
        help="output folder (%(default)s). Only files that an earlier prediction wrote "
        "are replaced",
    )
    command.add_argument(
        "--no-overlays",
        action="store_true",
        help="write only masks and areas.csv, no overlays",
    )
    command.add_argument(
        "--confidence",
        action="store_true",
        help="write the probability of the predicted class as grey images, where 255 "
        "means 1",
    )
    command.add_argument(
        "--probabilities",
        action="store_true",
        help="write the probabilities of all classes as .npz, float16 of shape (C, H, "
        "W)",
    )
    command.add_argument(
        "--long-side",
        type=int,
        help="scale images so that their longer side has this many pixels; 0 keeps "
        "their size (default: keep the size; if the model was trained with "
        "`long_side`, scale larger images down to that)",
    )
    command.add_argument(
        "--tile",
        type=int,
        default=TILE,
        help="largest side in pixels; larger images are split into tiles of this size "
        "(%(default)s)",
    )
    command.add_argument(
        "--batch-size", type=int, default=4, help="images per batch (%(default)s)"
    )
    command.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:1 (%(default)s)"
    )


# Name, function that adds the arguments, function that runs it, and help.
COMMANDS = (
    (
        "init",
        _add_init_arguments,
        run_init,
        "Write a project folder with configurations and profiles.",
    ),
    (
        "run",
        _add_run_arguments,
        run_run,
        "Run the workflow in this folder. All options and targets go to Snakemake. It "
        "uses all cores, unless you give --cores, --jobs, --executor or --profile.",
    ),
    (
        "predict",
        _add_predict_arguments,
        run_predict,
        "Segment images with an evaluated step.",
    ),
    (
        "info",
        _add_info_arguments,
        run_info,
        "Print the classes, results and files of a step.",
    ),
    (
        "export",
        _add_export_arguments,
        run_export,
        "Write a model file that runs without kproba.",
    ),
    (
        "pack",
        _add_pack_arguments,
        run_pack,
        "Write a step to one archive, for prediction or further steps on another "
        "machine.",
    ),
    (
        "tensorboard",
        _add_tensorboard_arguments,
        run_tensorboard,
        "Show the training curves of all steps.",
    ),
    (
        "choose",
        _add_choose_arguments,
        run_choose,
        "Choose the best of several methods by results on held-out images.",
    ),
)


@contextlib.contextmanager
def silent_when_unread() -> Iterator[None]:
    """Run a block without an error if its output is not read to the end (`| head`).

    Python would otherwise report it when it flushes standard output at its end.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command and its options.

    Args:
        words: Words of the command line. All words after `run` are passed to Snakemake.
    """
    if words[:1] == ["run"] and words[1:2] not in (["-h"], ["--help"]):
        return argparse.Namespace(run=run_run, words=list(words[1:]))
    return build_parser().parse_args(words)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; exit with status 1 and a message if it fails."""
    with exit_on_error(), silent_when_unread():
        options = parse(sys.argv[1:] if argv is None else argv)
        log_to_stderr(first=True)
        status = options.run(options)
    sys.exit(status)


if __name__ == "__main__":
    main()
