"""Paths of all artifacts below results/; no other module writes such a path.

The constants are patterns with the wildcards of Snakemake. Rules use the patterns
directly; `fill` replaces the wildcards by values. No code parses a path.
"""

from collections.abc import Mapping

RESULTS = "results"

# Data
DATA = f"{RESULTS}/data/{{dataset}}"
SCENES = f"{DATA}/scenes"
ARCHIVE = f"{DATA}/archives/{{archive}}"
UNPACKED = f"{DATA}/unpacked"
INDEX = f"{DATA}/index.csv"
INTEGRITY = f"{DATA}/integrity.json"
FILES = f"{DATA}/files.json"
MADE_MASKS = f"{DATA}/masks"
SALIENCY = f"{DATA}/saliency.csv"
SALIENCY_FILES = f"{DATA}/saliency_files.json"
WEIGHTS = f"{RESULTS}/weights/{{backbone}}.safetensors"

# Files of a step that was packed elsewhere: its network, or that of step 0
RECEIVED_MODEL = f"{DATA}/received/{{network}}/model.safetensors"
RECEIVED_DESCRIPTION = f"{DATA}/received/{{network}}/model.json"
RECEIVED_BANK = f"{DATA}/received/bank/prototypes.safetensors"
RECEIVED_BANK_DESCRIPTION = f"{DATA}/received/bank/prototypes.json"

# Splits of a task
TASK_SPLITS = f"{RESULTS}/splits/{{dataset}}/{{task}}-{{setting}}"
SPLIT = f"{TASK_SPLITS}/step{{step}}.csv"
CLASSES = f"{TASK_SPLITS}/classes.json"

# A step of a run
EXPERIMENT = f"{RESULTS}/{{dataset}}/{{task}}-{{setting}}"
STEP = f"{EXPERIMENT}/{{method}}/seed{{seed}}/step{{step}}"
SETTINGS = f"{STEP}/settings.json"
MODEL = f"{STEP}/model.safetensors"
DESCRIPTION = f"{STEP}/model.json"
METRICS = f"{STEP}/metrics.csv"
USAGE = f"{STEP}/usage.json"
TENSORBOARD = f"{STEP}/tensorboard"
STATE = f"{STEP}/training-state.pt"
BANK = f"{STEP}/prototypes.safetensors"
BANK_DESCRIPTION = f"{STEP}/prototypes.json"
STATISTICS = f"{STEP}/statistics.safetensors"
STATISTICS_DESCRIPTION = f"{STEP}/statistics.json"
LABELS = f"{STEP}/pseudo_labels"
LABEL_TABLE = f"{STEP}/pseudo_labels.csv"
LABEL_QUALITY = f"{STEP}/pseudo_label_quality.csv"
MEMORY = f"{STEP}/memory.csv"
MEMORY_RECORD = f"{STEP}/memory.json"
MEMORY_LABELS = f"{STEP}/memory"
EVALUATION = f"{STEP}/evaluation.json"
CONFUSION = f"{STEP}/confusion.csv"
EXAMPLES = f"{STEP}/examples"
PREDICTOR = f"{STEP}/predictor.json"
CARD = f"{STEP}/card.md"

# Snakemake's measurements of the jobs that make a step
TRAINING_TIME = f"{STEP}/train.benchmark.tsv"
BANK_TIME = f"{STEP}/prototypes.benchmark.tsv"
STATISTICS_TIME = f"{STEP}/statistics.benchmark.tsv"
LABELS_TIME = f"{STEP}/pseudo_labels.benchmark.tsv"
MEMORY_TIME = f"{STEP}/memory.benchmark.tsv"

# All runs of a configuration, by its name, and copies of those of the latest one
REPORTS = f"{RESULTS}/reports/{{configuration}}"
SUMMARY = f"{REPORTS}/summary.csv"
CLASS_RESULTS = f"{REPORTS}/classes.csv"
LABEL_RESULTS = f"{REPORTS}/pseudo_labels.csv"
REPORT = f"{REPORTS}/report.html"
CHOICE = f"{REPORTS}/choice.csv"
LATEST = tuple(
    f"{RESULTS}/{name}"
    for name in ("summary.csv", "classes.csv", "pseudo_labels.csv", "report.html")
)
FIGURES = f"{EXPERIMENT}/figures"
FIGURE_NAMES = ("miou", "training", "classes", "pseudo_labels", "examples")
FIGURE = f"{FIGURES}/{{figure}}.png"


def fill(pattern: str, values: Mapping[str, object], **more: object) -> str:
    """Return a path: the pattern with its wildcards replaced.

    Raises:
        KeyError: A wildcard has no value.
    """
    return pattern.format_map({**values, **more})


def figure(name: str) -> str:
    """The pattern of a figure of an experiment, one of `FIGURE_NAMES`."""
    return f"{FIGURES}/{name}.png"


def log_path(pattern: str, name: str) -> str:
    """The log of a rule, beside the artifact that it makes, as a pattern.

    Args:
        pattern: The artifact, a constant of this module.
        name: Name of the log, without ending.
    """
    folder, _, _ = pattern.rpartition("/")
    return f"{folder}/{name}.log"
