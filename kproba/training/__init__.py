"""The training of a step: one loop for every method.

`loop` is the place to start. `settings` and `files` are what it reads, `networks` and
`optimizer` what it trains, `targets` and `iteration` one iteration, `recorder`,
`curves`, `log` and `monitor` what is seen of it, `checkpoint` how it survives a kill.
"""
