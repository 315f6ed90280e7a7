#!/usr/bin/env bash
# Stage 1, offline, from InternVL2-4B. Usage: bash shell/online_4b/videochat_online_4b_stage1_ft.sh [--any_key value]...
# All keys are in configs/train/stage1.yaml; how many processes and nodes, launch.sh says.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/launch.sh" configs/train/stage1.yaml "$@"
