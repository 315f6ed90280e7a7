#!/usr/bin/env bash
# OVBench, sliding window: the last 32 s at 2 fps, at most 64 frames, all kept; no memory.
#   bash shell/eval/online_bench_sliding_window.sh --model DIR --annotations FILE... --data-root DIR --output OUT [FLAGS]
# On several GPUs: GPUS=8 bash shell/eval/online_bench_sliding_window.sh ...
set -euo pipefail
arguments=(evaluate --task ovbench --setting sliding_window "$@")
if ((${GPUS:-1} > 1)); then
    exec torchrun --standalone --nproc_per_node "$GPUS" -m videochat_online.cli.main "${arguments[@]}"
fi
exec videochat-online "${arguments[@]}"
