#!/usr/bin/env bash
# Set up, then streams, training in both stages, evaluation and a table:
#   bash scripts/quickstart.sh [--seed N] [--output DIR] [--preset quickstart|full] [--from_scratch]
# About ten minutes on two CPU cores, up to 4 GB of memory, no GPU, no downloads but the packages.
# The same command resumes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
began=$SECONDS
source scripts/setup.sh "[all]"
echo "-- set-up: $((SECONDS - began)) s"

mkdir -p outputs
world=outputs/world.mp4 # the Earth by night, turning for 30 seconds; it comes with Gradio
folder='from importlib.util import find_spec; print(find_spec("gradio").submodule_search_locations[0])'
if [[ ! -s $world ]]; then
    { gradio=$(python -c "$folder") && cp "$gradio/media_assets/videos/world.mp4" "$world.part" &&
        mv "$world.part" "$world"; } ||
        echo "warning: no world.mp4 in this version of Gradio: the documents' examples need a clip of yours" >&2
fi
[[ -s outputs/tiny_model/tokenizer.json ]] || python -m videochat_online.testing outputs/tiny_model

exec python scripts/quickstart/run_quickstart.py "$@" # in place of this shell: a signal to it reaches what runs
