from __future__ import annotations

import subprocess
import sys


def test_importing_the_application_loads_no_library() -> None:
    code = (
        "import sys, transformers_url_m; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'tokenizers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
