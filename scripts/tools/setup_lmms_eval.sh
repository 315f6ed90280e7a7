#!/usr/bin/env bash
# A virtual environment of its own with this package and lmms-eval: bash scripts/tools/setup_lmms_eval.sh [DIR] (.venv-lmms)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export VIRTUAL_ENV=${1:-.venv-lmms}
source scripts/setup.sh "[lmms-eval]" constraints-lmms-eval.txt
# Without its requirements: what it needs of them is the extra lmms-eval of pyproject.toml.
python -m pip install -qq --disable-pip-version-check --no-deps -c constraints-lmms-eval.txt lmms-eval
