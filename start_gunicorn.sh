#!/usr/bin/env bash
# Start a pool: long flags -> exported environment -> gunicorn. The flags are the settings of
# gpupool/settings.py; --help prints them. The pid of this script becomes the master's.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"

fail() {
    echo "gpupool: error: $1" >&2
    exit 2
}

# The active Python environment, else the one beside this script.
if [[ -n ${VIRTUAL_ENV:-} || -n ${CONDA_PREFIX:-} ]]; then
    python=$(command -v python) || fail "an environment is active, but it has no python"
elif [[ -x $here/.venv/bin/python ]]; then
    python=$here/.venv/bin/python
else
    python=$(command -v python3) || fail "no python3 on the PATH; install Python 3.11 or newer"
fi

table=$("$python" -m gpupool.flags table) \
    || fail "$python cannot import gpupool (above); activate its environment or pip install '.'"

declare -A variable kind
longopts=help,version
while IFS=$'\t' read -r flag variable_name flag_kind; do
    variable[$flag]=$variable_name
    kind[$flag]=$flag_kind
    longopts+=,$flag
    [[ $flag_kind == switch ]] || longopts+=:
done <<<"$table"

# What follows -- is the engine's; getopt must not see it.
ours=()
while (($#)) && [[ $1 != -- ]]; do
    ours+=("$1")
    shift
done
engine_args=
if (($#)); then
    shift
    for argument in "$@"; do
        engine_args+="'${argument//\'/\'\\\'\'}' "
    done
    export GPUPOOL_ENGINE_ARGS=$engine_args
fi

parsed=$(LC_ALL=C getopt --name start_gunicorn.sh --options h --longoptions "$longopts" -- \
    ${ours[@]+"${ours[@]}"} 2>&1) \
    || fail "$("$python" -m gpupool.flags explain "${parsed%%$'\n'*}")"
eval set -- "$parsed"

declare -A listed
while [[ $1 != -- ]]; do
    flag=${1#--}
    if [[ $1 == -h || $flag == help ]]; then
        exec "$python" -m gpupool.flags help
    elif [[ $flag == version ]]; then
        exec "$python" -m gpupool.flags version
    fi
    name=${variable[$flag]}
    shift
    if [[ ${kind[$flag]} == switch ]]; then
        export "$name=1"
        continue
    fi
    # getopt takes the next flag for a value that is missing.
    word=${1#--}
    word=${word%%=*}
    [[ $1 != --* || -z ${kind[${word:-.}]:-} ]] \
        || fail "option '--$flag' requires an argument, but '$1' follows; see start_gunicorn.sh --help"
    if [[ ${kind[$flag]} == list ]]; then
        # In the variable a comma parts two values. What was refused may be a key: it is not shown.
        [[ $1 != *,* ]] || fail "--$flag: a value has a comma; give --$flag once for each value"
        listed[$name]+=${listed[$name]:+,}$1
        export "$name=${listed[$name]}"
    else
        export "$name=$1"
    fi
    shift
done
shift
(($# == 0)) || fail "'$1' is no flag; the model is given by --model_name, see --help"

exec "$python" -m gunicorn --config "$here/gunicorn_conf.py"
