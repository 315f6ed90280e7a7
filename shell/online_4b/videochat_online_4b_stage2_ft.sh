#!/usr/bin/env bash
# Stage 2, online and offline data, from the result of stage 1. Usage: bash shell/online_4b/videochat_online_4b_stage2_ft.sh [--any_key value]...
# All keys are in configs/train/stage2.yaml; how many processes and nodes, launch.sh says.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
exec bash "$root/shell/online_4b/launch.sh" "$root/configs/train/stage2.yaml" --config_root "$root" "$@"
