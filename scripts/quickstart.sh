#!/usr/bin/env bash
# Set up, make a tiny model, ask it about a real clip: bash scripts/quickstart.sh [CLIP [ARGUMENTS OF chat]]
set -euo pipefail
clip=${1:-}
[[ -z $clip || $clip == /* ]] || clip=$PWD/$clip
cd "$(dirname "${BASH_SOURCE[0]}")/.."
done_in() { echo "-- $1: $((SECONDS - began)) s" && began=$SECONDS; }
began=$SECONDS

source scripts/setup.sh ""
done_in "set-up"

model=outputs/tiny_model
[[ $model/tokenizer.json -nt scripts/make_tiny_model.py ]] || python scripts/make_tiny_model.py "$model"
done_in "tiny model with random weights in $model"

if [[ -z $clip ]]; then
    clip=outputs/world.mp4 # the Earth by night, turning for 30 seconds; it comes with Gradio
    gradio=$(python -c 'from importlib.util import find_spec; print(find_spec("gradio").submodule_search_locations[0])')
    [[ -s $clip ]] || cp "$gradio/media_assets/videos/world.mp4" "$clip"
fi
videochat-online chat --model "$model" --video "$clip" --max_new_tokens 12 "${@:2}" \
    --ask "5:What is in the picture?" "15:Which way does it turn?" "30:What has come into view since then?"
done_in "three questions about $clip"
cat <<'END'

Frames, times and token counts are real; the answers are noise, because the tiny model has random weights.
With the published weights (downloaded once, about 8 GB; wants a GPU):
    videochat-online chat --model MCG-NJU/VideoChatOnline-4B --video outputs/world.mp4 --ask "15:Which way?"
END
