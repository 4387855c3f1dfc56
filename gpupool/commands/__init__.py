"""The commands of `gpupool`, a module each: their arguments, and what they print (processes of
their own). gpupool/cli.py puts them together; what they do is done elsewhere."""
