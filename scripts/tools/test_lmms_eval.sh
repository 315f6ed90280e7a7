#!/usr/bin/env bash
# The way through lmms-eval, end to end, on generated tasks: bash scripts/tools/test_lmms_eval.sh [DIR of the environment]
# Makes the environment where there is none (2 GB). Not among the tests, since it installs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bash scripts/tools/setup_lmms_eval.sh "$@"
source "${1:-.venv-lmms}/bin/activate"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec python scripts/tools/check_lmms_eval.py
