"""Pools that `gpupool run` starts: their file, their run directory, their processes.

Used by the commands, each in a process of its own; a pool itself imports nothing of this.
"""
