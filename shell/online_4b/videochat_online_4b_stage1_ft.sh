#!/usr/bin/env bash
# Stage 1, offline, from InternVL2-4B. Usage: bash shell/online_4b/videochat_online_4b_stage1_ft.sh [--any_key value]...
# All keys are in configs/train/stage1.yaml; how many processes and nodes, launch.sh says.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
exec bash "$root/shell/online_4b/launch.sh" "$root/configs/train/stage1.yaml" --config_root "$root" "$@"
