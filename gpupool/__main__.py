"""`python -m gpupool`: the command line without its script on the PATH (a process of its own)."""

from gpupool.cli import main

main()
