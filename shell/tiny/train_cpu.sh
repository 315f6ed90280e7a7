#!/usr/bin/env bash
# Stage 1 of the tiny model on the CPU, two processes: what the 4B scripts do, in minutes. After scripts/quickstart.sh.
# Usage: bash shell/tiny/train_cpu.sh --output_dir outputs/mine [--any_key value]...
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export CUDA_VISIBLE_DEVICES="" GPUS="${GPUS:-2}"
exec bash "$root/shell/online_4b/launch.sh" "$root/configs/train/tiny_stage1.yaml" --config_root "$root" "$@"
