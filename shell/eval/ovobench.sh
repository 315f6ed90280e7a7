#!/usr/bin/env bash
# OVO-Bench; streaming unless --setting sliding_window is given: up to 64 frames of the whole stream.
#   bash shell/eval/ovobench.sh --model DIR --annotations FILE... --data-root DIR --output OUT [FLAGS]
# --protocol reference: the official clips, which end at the ceiling of a question's time.
# On several GPUs: GPUS=8 bash shell/eval/ovobench.sh ...
set -euo pipefail
arguments=(evaluate --task ovobench "$@")
if ((${GPUS:-1} > 1)); then
    exec torchrun --standalone --nproc_per_node "$GPUS" -m videochat_online.cli.main "${arguments[@]}"
fi
exec videochat-online "${arguments[@]}"
