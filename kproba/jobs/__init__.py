"""The programs of the rules that run networks: command lines, and nothing else.

`kproba-launch` starts them, on one process or several. Each reads artifacts, calls the
functions of the method, and writes artifacts.
"""
