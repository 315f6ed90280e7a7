#!/usr/bin/env bash
# Video-MME without subtitles, through lmms-eval; with them: --tasks videomme_w_subtitle.
# Word for word as published, which is without them: pretrained=DIR,protocol=reference
#   bash shell/eval/videomme.sh --model_args pretrained=DIR --output_path OUT [FLAGS of lmms-eval]...
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/lmms_eval.sh" videomme "$@"
