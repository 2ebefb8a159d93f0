"""Methods: declarations built from loss terms, output heads and label rules.

`terms`, `rules`, `method` and `builtin` are tables that import no torch, for the plan
of the workflow. `losses` holds the formulas, `labels` the rules of the pseudo labels,
`export` writes them, and `quality` compares them with the hidden ground truth.
"""
