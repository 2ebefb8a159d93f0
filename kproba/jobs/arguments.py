"""Arguments that several jobs share. They are parsed before torch is loaded."""

import argparse
import json

from kproba.data.folders import parse_folders


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the arguments `--job` (the settings of the job) and `--folders`."""
    parser.add_argument("--job", type=json.loads, required=True, help="JSON")
    add_folders(parser)


def add_folders(parser: argparse.ArgumentParser) -> None:
    """Add the argument `--folders`: the folders of the pictures, by dataset."""
    parser.add_argument(
        "--folders",
        type=parse_folders,
        default={},
        help="JSON: for each dataset, its folder and the folder of its converted masks",
    )


def add_names(parser: argparse.ArgumentParser) -> None:
    """Add the argument `--names`: class names so far, for tables and pictures."""
    parser.add_argument(
        "--names",
        type=json.loads,
        default=[],
        help="JSON list of class names, background first",
    )
