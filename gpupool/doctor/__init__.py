"""Common problems of a machine, and what to do about them (`gpupool doctor`).

Every check is a function of plain facts, so that both of its outcomes are tested; facts.py looks
at the machine.
"""
