from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

from kproba.plan.config_files import ConfigFileError, check_files

min_version("9.19")

# Before Snakemake reads a configuration: one that cannot be read gets a message.
if not workflow.configfiles:
    try:
        check_files(["config/config.yaml"])
    except ConfigFileError as error:
        raise WorkflowError(str(error)) from None


# A file named with --configfile stands alone; it is not layered over the default.
if not workflow.configfiles:

    configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/prototypes.smk"
include: "workflow/rules/pseudo_labels.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


rule all:
    """Make summary and report, and all that they need."""
    default_target: True
    input:
        artifacts.LATEST,
