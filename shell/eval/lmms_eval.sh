#!/usr/bin/env bash
# Called by the scripts of the single benchmarks: lmms_eval.sh TASKS [FLAGS of lmms-eval]...; needs lmms-eval installed:
#   bash scripts/tools/setup_lmms_eval.sh && source .venv-lmms/bin/activate
# On several GPUs: GPUS=8 bash shell/eval/mvbench.sh ...
set -euo pipefail
export HF_HOME=${HF_HOME:-$HOME/.cache/huggingface} # where videos go; MovieChat's task insists on it
# --verbosity DEBUG: otherwise lmms-eval prints an error and exits with status 0.
arguments=(--model videochat_online --tasks "$1" --verbosity DEBUG "${@:2}")
if ((${GPUS:-1} > 1)); then
    exec torchrun --standalone --nproc_per_node "$GPUS" -m lmms_eval "${arguments[@]}"
fi
exec lmms-eval "${arguments[@]}"
