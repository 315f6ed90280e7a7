#!/usr/bin/env bash
# MLVU, multiple choice, development and test set, through lmms-eval.
#   bash shell/eval/mlvu.sh --model_args pretrained=DIR --output_path OUT [FLAGS of lmms-eval]...
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/lmms_eval.sh" mlvu_dev,mlvu_test "$@"
