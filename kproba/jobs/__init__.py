"""The programs of the rules that run networks.

`kproba-launch` starts them, on one process or several. `train`, `build_bank`,
`export_labels`, `update_memory` and `evaluate` are only command lines. They load torch
after their arguments are parsed. The work is in `kproba.training.loop`, `step_bank`,
`step_labels`, `step_memory` and `step_test`: each reads artifacts, calls the functions
of the method, and writes artifacts.
"""
