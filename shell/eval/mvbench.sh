#!/usr/bin/env bash
# MVBench, 20 tasks, through lmms-eval; word for word as published: pretrained=DIR,protocol=reference
#   bash shell/eval/mvbench.sh --model_args pretrained=DIR --output_path OUT [FLAGS of lmms-eval]...
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/lmms_eval.sh" mvbench "$@"
