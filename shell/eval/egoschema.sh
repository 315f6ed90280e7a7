#!/usr/bin/env bash
# EgoSchema through lmms-eval: the subset is scored, the whole gives a file to submit.
#   bash shell/eval/egoschema.sh --model_args pretrained=DIR --output_path OUT [FLAGS of lmms-eval]...
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/lmms_eval.sh" egoschema,egoschema_subset "$@"
