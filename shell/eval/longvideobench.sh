#!/usr/bin/env bash
# LongVideoBench, validation set, through lmms-eval.
#   bash shell/eval/longvideobench.sh --model_args pretrained=DIR --output_path OUT [FLAGS of lmms-eval]...
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/lmms_eval.sh" longvideobench_val_v "$@"
