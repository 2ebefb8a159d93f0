"""Arguments that several jobs share. They are parsed before torch is loaded."""

import argparse
import json

from kproba.data.folders import parse_folders


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the arguments `--job`, what the job does, and `--folders`."""
    parser.add_argument("--job", type=json.loads, required=True, help="JSON")
    add_folders(parser)


def add_folders(parser: argparse.ArgumentParser) -> None:
    """Add the argument `--folders`: where the pictures are, by dataset."""
    parser.add_argument(
        "--folders",
        type=parse_folders,
        default={},
        help="JSON: dataset to its folder and that of its converted masks",
    )


def add_names(parser: argparse.ArgumentParser) -> None:
    """Add the argument `--names`: of the classes so far, for tables and pictures."""
    parser.add_argument(
        "--names", type=json.loads, default=[], help="JSON list, background first"
    )
