#!/usr/bin/env bash
# OVBench, streaming: 8 fps from the clip's start into a pyramid memory of 2/2/12 frames.
#   bash shell/eval/online_bench_stream.sh --model DIR --annotations FILE... --data-root DIR --output OUT [FLAGS]
# On several GPUs: GPUS=8 bash shell/eval/online_bench_stream.sh ...
set -euo pipefail
arguments=(evaluate --task ovbench --setting streaming "$@")
if ((${GPUS:-1} > 1)); then
    exec torchrun --standalone --nproc_per_node "$GPUS" -m videochat_online.cli.main "${arguments[@]}"
fi
exec videochat-online "${arguments[@]}"
