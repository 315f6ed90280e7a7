#!/usr/bin/env bash
# Adapters on one GPU of 24 GB, from the published model. Usage: bash shell/online_4b/videochat_online_4b_lora_24gb.sh [--any_key value]...
# All keys are in configs/train/stage2_lora.yaml.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
GPUS=1 exec bash "$root/shell/online_4b/launch.sh" "$root/configs/train/stage2_lora.yaml" --config_root "$root" "$@"
