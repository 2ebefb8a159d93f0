"""The plan: from the configuration to the jobs and paths of the workflow.

`schema` checks a configuration. `plan.Plan` gives the rules the runs, the settings of
each job (`jobs`, `chain`), and its input files. Nothing here imports torch, because
every call of Snakemake builds the plan.
"""
