#!/usr/bin/env bash
# MovieChat-1K, both modes, through lmms-eval; a judge scores: OPENAI_API_KEY.
#   bash shell/eval/moviechat.sh --model_args pretrained=DIR --output_path OUT [FLAGS of lmms-eval]...
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/lmms_eval.sh" moviechat_global,moviechat_breakpoint "$@"
