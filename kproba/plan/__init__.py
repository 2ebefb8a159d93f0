"""From the configuration to the jobs of the workflow and where their artifacts are.

`schema` checks a configuration. `plan.Plan` provides the rules with the runs, with what
determines each job (`jobs`, `chain`), and with the files that it reads. Nothing here
imports torch, because every call of Snakemake builds the plan.
"""
