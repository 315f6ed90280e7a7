#!/usr/bin/env bash
# Write constraints.txt and constraints-lmms-eval.txt anew: bash scripts/freeze.sh [DIR [FLAGS of uv pip compile]...]
# For every Python from 3.10 on and every platform. Pins that are in the files of DIR (the repository) and still fit stay;
# --upgrade, or --upgrade-package NAME, moves them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-.}

# uv knows nothing of pip's settings.
index=$(python -m pip config list | sed -nE "s/^(global|:env:)\.index-url='(.*)'$/\2/p" | tail -n 1)
[[ -z $index ]] || export UV_DEFAULT_INDEX=$index
export UV_PYTHON_DOWNLOADS=never

freeze() { # FILE EXTRA FLAGS...
    local pins
    python -m uv pip compile -q pyproject.toml --extra "$2" --universal --python-version 3.10 --python "$(command -v python)" \
        --no-annotate --no-header --output-file "$1" "${@:3}"
    # Torch names its CUDA packages itself, other ones in each of its builds.
    pins=$(grep -vE '^(#|nvidia-|cuda-|triton==)' "$1")
    printf '# Written by scripts/freeze.sh, not by hand: all that extra "%s" of pyproject.toml brings along.\n' "$2" >"$1"
    printf '# Not here: the CUDA packages of torch, which each build of it names itself.\n%s\n' "$pins" >>"$1"
}

freeze "$folder/constraints-lmms-eval.txt" lmms-eval "${@:2}" &
freeze "$folder/constraints.txt" dev "${@:2}"
wait $!
echo "lmms-eval==0.7.3" >>"$folder/constraints-lmms-eval.txt" # installed without its requirements
