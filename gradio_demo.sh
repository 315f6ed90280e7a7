#!/usr/bin/env bash
# The demo in the browser: bash gradio_demo.sh [--model DIR] [any flag of videochat-online demo]
# Without a model it takes the one that the quickstart has trained, else a tiny one with random weights.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source scripts/setup.sh "[all]"
export GRADIO_ANALYTICS_ENABLED=False
model=()
if [[ " $* " != *" --model"* ]]; then
    model=(--model outputs/quickstart/stage2)
    if [[ ! -e outputs/quickstart/stage2/config.json ]]; then
        model=(--model outputs/tiny_model)
        [[ -e outputs/tiny_model/config.json ]] || python -m videochat_online.testing outputs/tiny_model
        echo "no --model: showing a tiny one with random weights, whose answers are noise (bash scripts/quickstart.sh trains one)"
    fi
fi
exec videochat-online demo "${model[@]}" "$@"
