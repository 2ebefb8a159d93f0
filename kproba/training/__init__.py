"""The training of a step: one loop for every method.

Start reading at `loop`. `settings` and `files` describe its inputs, `networks` and
`optimizer` build the trained parts, and `targets` and `iteration` run one iteration.
`recorder`, `curves`, `log` and `monitor` report the progress. `checkpoint` saves and
resumes the state.
"""
