"""A single transformers instance: `python URLs/transformers_url.py --model_name M --gpuid 0`.

A pool of one worker by the same code (its process becomes the master). Imports no engine.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpupool import extras

if __name__ == "__main__":
    extras.require("gpupool.single", "transformers_url")
    from gpupool.single import main

    main("transformers", sys.argv[1:])
