#!/usr/bin/env bash
# Set up, then streams, training in both stages, evaluation and a table: bash scripts/quickstart.sh [--seed N] [--output DIR]
# About ten minutes on two CPU cores, 3 GB of memory, no GPU, no downloads but the packages. The same command resumes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
began=$SECONDS
source scripts/setup.sh ""
echo "-- set-up: $((SECONDS - began)) s"

world=outputs/world.mp4 # the Earth by night, turning for 30 seconds; it comes with Gradio
gradio=$(python -c 'from importlib.util import find_spec; print(find_spec("gradio").submodule_search_locations[0])')
mkdir -p outputs
[[ -s $world ]] || cp "$gradio/media_assets/videos/world.mp4" "$world"
[[ -s outputs/tiny_model/tokenizer.json ]] || python scripts/make_tiny_model.py outputs/tiny_model

status=0
python scripts/quickstart.py "$@" || status=$?
cat <<'END'

Next, with real weights (downloaded once, about 8 GB; wants a GPU) and with the tiny ones:
    source .venv/bin/activate # unless another environment is active
    videochat-online chat --model MCG-NJU/VideoChatOnline-4B --video outputs/world.mp4 --ask "15:Which way does it turn?"
    bash shell/eval/online_bench_stream.sh --model DIR --annotations FILE... --data-root DIR --output OUT
    bash shell/online_4b/videochat_online_4b_stage1_ft.sh --dry_run # then stage2; anno_data/README.md says where data goes
    videochat-online chat --model outputs/tiny_model --video outputs/world.mp4 --ask "15:What is this?"
END
exit "$status"
