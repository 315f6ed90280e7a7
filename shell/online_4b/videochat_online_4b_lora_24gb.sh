#!/usr/bin/env bash
# Adapters on one GPU of 24 GB, from the published model. Usage: bash shell/online_4b/videochat_online_4b_lora_24gb.sh [--any_key value]...
# All keys are in configs/train/stage2_lora.yaml.
set -euo pipefail
GPUS=1 exec bash "$(dirname "${BASH_SOURCE[0]}")/launch.sh" configs/train/stage2_lora.yaml "$@"
