#!/usr/bin/env bash
# Set up, then lint, types, recorded numbers (where they are) and tests: bash scripts/test.sh [PYTEST ARGUMENTS]
# Without the slow tests: -m "slow or not slow" has them, too, as continuous integration does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh "[dev]"
export HF_HUB_OFFLINE=1 GRADIO_ANALYTICS_ENABLED=False # no test waits for a network
status=0 summary=""

check() { # NAME COMMAND...: go on after a failure, remember the first one's status
    local start=$SECONDS result=0
    echo "== $1: ${*:2}"
    "${@:2}" || result=$?
    local word=ok
    ((result == 0)) || word="FAILED ($result)"
    summary+=$(printf '%-8s %-12s %4d s' "$1" "$word" $((SECONDS - start)))$'\n'
    status=$((status ? status : result))
}

check lint python -m ruff check .
check format python -m ruff format --check .
check types python -m mypy
[[ ! -e ../shared/golden ]] || check golden python scripts/check_golden.py ../shared/golden
check tests python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" "$@" # last: it ends with how many tests were skipped, and why
printf '\n%s' "$summary"
exit "$status"
