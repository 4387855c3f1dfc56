#!/usr/bin/env bash
# Installs the pinned packages, and this project editable, into a virtual environment.
#
#   requirements/install.sh light VENV_DIR   llama.cpp and the demo model; no torch
#   requirements/install.sh full VENV_DIR    all the tests need: CPU torch, vLLM, dev tools, and a
#                                            browser on PATH
#
# A stamp in VENV_DIR makes the second run instant. A changed lock, pyproject.toml or checkout
# folder updates the environment; one without a stamp (a killed run) is made anew.
# PYTHON names the interpreter for a new environment (default python3; 3.11 or newer).
set -euo pipefail

readonly TORCH_INDEX=https://download.pytorch.org/whl/cpu

say() { echo "install.sh: $*"; }
fail() { say "$*" >&2; exit 2; }

[[ $# -eq 2 && $1 =~ ^(light|full)$ ]] || fail "usage: install.sh light|full VENV_DIR"
profile=$1
venv=$(realpath -m -- "$2")
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
stamp=$venv/gpupool.stamp
cd -- "$root"

stamp_of() { # light|full -> what the stamp of a finished install reads
    local inputs=(requirements/base.lock)
    [[ $1 == light ]] || inputs=(requirements/full.lock requirements/torch.lock)
    inputs+=(pyproject.toml requirements/install.sh)
    echo "$1 $(cat -- "${inputs[@]}" <(echo "$root") | sha256sum)"
}

is_done() {
    [[ -x $venv/bin/python && -f $stamp ]] || return 1
    local have
    have=$(<"$stamp")
    [[ $have == "$(stamp_of "$profile")" || $have == "$(stamp_of full)" ]]
}

make_venv() {
    local python=${PYTHON:-python3} version
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
        fail "cannot run $python; install Python 3.11 or newer, or name one with PYTHON=..."
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$python is Python $version, 3.11 or newer is needed; name one with PYTHON=..."
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python has no venv module; on Debian or Ubuntu: apt install python$version-venv"
    say "new environment $venv, Python $version"
    find "$venv" -mindepth 1 -maxdepth 1 ! -name pyvenv.cfg -exec rm -rf {} +
    "$python" -m venv "$venv"
}

pip_install() {
    local compiling=()
    # Python compiles what the tests import; all of it takes a minute longer.
    [[ $profile == light ]] || compiling=(--no-compile)
    "$venv/bin/python" -m pip install -qq --no-input --no-deps ${compiling[@]+"${compiling[@]}"} "$@"
}

install_torch() {
    say "torch, CPU build"
    pip_install -r requirements/torch.lock 2>/dev/null && return
    say "not on the configured indexes, taking it from $TORCH_INDEX"
    pip_install -r requirements/torch.lock --index-url "$TORCH_INDEX"
}

check_cpu_build() {
    "$venv/bin/python" - <<'CHECK'
import sys
from importlib.metadata import distributions

import torch

if torch.version.cuda is not None:
    sys.exit(f"install.sh: torch {torch.__version__} is a CUDA build; delete the environment")
found = {d.metadata["Name"]: d.version for d in distributions()}
for name in ("torchvision", "torchaudio", "torchcodec"):
    if not found.get(name, "+cpu").endswith("+cpu"):
        sys.exit(
            f"install.sh: {name} {found[name]} is no CPU build, and next to the CPU torch it "
            f"breaks transformers; run: {sys.executable} -m pip uninstall {name}"
        )
CHECK
}

# The page's tests drive the system's browser; what Python could download is another 400 MB.
see_to_browser() {
    local name
    for name in chromium chromium-browser google-chrome; do
        ! command -v "$name" >/dev/null || return 0
    done
    if [[ $EUID -eq 0 ]] && command -v apt-get >/dev/null; then
        say "chromium, from the system's packages"
        apt_chromium || { apt update && apt_chromium; } || true
    fi
    command -v chromium >/dev/null ||
        say "no browser for the tests of the page; on Debian or Ubuntu: apt-get install --no-install-recommends chromium"
}

apt_chromium() { apt install --yes --no-install-recommends chromium; }

apt() { # apt-get reads signatures as a user of its own, who may not write to a private TMPDIR
    TMPDIR=/var/tmp DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 "$@" >/dev/null 2>&1
}

is_done && exit
if [[ -n $(ls -A -- "$venv" 2>/dev/null) && ! -e $venv/pyvenv.cfg ]]; then
    fail "$venv is there and is no virtual environment; name another folder"
fi
# pyvenv.cfg is there from the first moment to the last: it marks the folder as ours, also after
# a kill, and two runs at once take turns on it.
mkdir -p -- "$venv"
touch -- "$venv/pyvenv.cfg"
exec 9<"$venv/pyvenv.cfg"
flock 9
is_done && exit

[[ -x $venv/bin/python && -f $stamp ]] || make_venv
rm -f -- "$stamp"
# An error of pip leaves the packages whole, so the next run goes on here; a kill may not.
set -E
trap 'echo unfinished >"$stamp"' ERR
lock=requirements/base.lock
if [[ $profile == full ]]; then
    lock=requirements/full.lock
    install_torch
fi
say "$(grep -c == "$lock") packages of $lock"
pip_install -r "$lock"
say "gpupool itself"
pip_install --no-build-isolation -e .
if [[ $profile == full ]]; then
    check_cpu_build
    see_to_browser
    bash requirements/nginx.sh || true # only its tests need it, and they say so
fi
stamp_of "$profile" >"$stamp"
say "$profile environment ready: $venv"
