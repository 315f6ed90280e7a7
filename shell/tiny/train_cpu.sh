#!/usr/bin/env bash
# Stage 1 of the tiny model on the CPU, two processes: what the 4B scripts do, in minutes. After scripts/quickstart.sh.
# Usage: bash shell/tiny/train_cpu.sh --output_dir outputs/mine [--any_key value]...
set -euo pipefail
export CUDA_VISIBLE_DEVICES="" GPUS="${GPUS:-2}"
exec bash "$(dirname "${BASH_SOURCE[0]}")/../online_4b/launch.sh" configs/train/tiny_stage1.yaml "$@"
