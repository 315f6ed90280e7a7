#!/usr/bin/env bash
# A virtual environment of its own with this package and lmms-eval: bash scripts/setup_lmms_eval.sh [DIR] (.venv-lmms)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export VIRTUAL_ENV=${1:-.venv-lmms}
source scripts/setup.sh ""

# What it imports, and what the benchmarks of shell/eval need (opencv: Video-MME). Our versions stay.
python -m pip install -qq --disable-pip-version-check -c constraints.txt aiohttp evaluate jsonlines loguru openai \
    opencv-python-headless pytablewriter python-dotenv requests sacrebleu tenacity
# Without its dependencies: among them are av below 16, one version of wandb, torchvision, and scorers of other tasks.
python -m pip install -qq --disable-pip-version-check --no-deps lmms-eval==0.7.3
