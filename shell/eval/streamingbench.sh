#!/usr/bin/env bash
# StreamingBench; streaming unless --setting sliding_window is given: the last 60 s, or --window_s all.
#   bash shell/eval/streamingbench.sh --model DIR --annotations FILE... --data-root DIR --output OUT [FLAGS]
# On several GPUs: GPUS=8 bash shell/eval/streamingbench.sh ...
set -euo pipefail
arguments=(evaluate --task streamingbench "$@")
if ((${GPUS:-1} > 1)); then
    exec torchrun --standalone --nproc_per_node "$GPUS" -m videochat_online.cli.main "${arguments[@]}"
fi
exec videochat-online "${arguments[@]}"
