"""The benchmarks: `python -m benchmarks`. A developer's tool, not part of the package."""
