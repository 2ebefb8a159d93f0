"""From the configuration to the jobs of the workflow and where their artifacts are.

`schema` checks a configuration, `plan.Plan` answers the rules: which runs there are,
what determines each job (`jobs`), and which files it reads and writes (`artifacts`,
`results`). Nothing here imports torch: the rules ask at every call of Snakemake.
"""
