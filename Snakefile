# Snakemake finds this file when it is called in this folder. The workflow is in
# workflow/Snakefile, where Snakemake's catalog and other workflows expect it.
include: "workflow/Snakefile"


# An included file has no default target.
workflow.default_target = "all"
