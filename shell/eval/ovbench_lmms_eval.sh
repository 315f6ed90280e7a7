#!/usr/bin/env bash
# OVBench for any model of lmms-eval: MODEL is its name there, ARGS its arguments. A question's clip ends with it.
#   OVBENCH_ANNOTATIONS=AVA.json:COIN.json:HiREST.json:TAO.json OVBENCH_ROOT=DIR \
#       bash shell/eval/ovbench_lmms_eval.sh qwen2_5_vl pretrained=Qwen/Qwen2.5-VL-3B-Instruct --output_path OUT
# OVBENCH_CLIPS=DIR keeps the clips for the next run. On several GPUs: GPUS=8.
set -euo pipefail
if (($# < 2)) || [[ -z ${OVBENCH_ANNOTATIONS:-} || -z ${OVBENCH_ROOT:-} ]]; then
    echo "usage: OVBENCH_ANNOTATIONS=FILE:FILE OVBENCH_ROOT=DIR bash $0 MODEL ARGS [FLAGS of lmms-eval]..." >&2
    exit 2
fi
here=$(dirname "${BASH_SOURCE[0]}")
tasks=$here/../../configs/lmms_eval
exec bash "$here/lmms_eval.sh" ovbench --model "$1" --model_args "$2" --include_path "$tasks" "${@:3}"
