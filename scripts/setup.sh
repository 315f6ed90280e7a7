#!/usr/bin/env bash
# Sourced by the other scripts, from the root of the repository: source scripts/setup.sh EXTRAS [CONSTRAINTS]
# EXTRAS: "[all]", "[dev]" or "[lmms-eval]"; CONSTRAINTS: the file of versions for them, constraints.txt where none is named.
# Installs the package into the active virtual environment, else into .venv, and only when something has changed.
set -euo pipefail

export VIRTUAL_ENV=${VIRTUAL_ENV:-$PWD/.venv}
python=$VIRTUAL_ENV/bin/python
[[ -x $python ]] || python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then # what the pinned versions need
    echo "error: expected Python 3.10 or newer, $python is not; name another one: PYTHON=python3.12 bash $0" >&2
    exit 2
fi
# The activate script is the last thing that a new environment gets: without it, making one was interrupted.
[[ -e $VIRTUAL_ENV/bin/activate ]] || "$python" -m venv "$VIRTUAL_ENV"
export PATH="$VIRTUAL_ENV/bin:$PATH"

stamp=$VIRTUAL_ENV/.videochat-online-installed
wanted=$({ pwd -P; python --version; cat pyproject.toml constraints*.txt; } | cksum)
extras=${1#"[all]"} # which every other one has in it
if [[ $(cat "$stamp" 2>/dev/null) != "$wanted "*"$extras"* ]]; then
    echo "installing into $VIRTUAL_ENV (a few minutes and about 2 GB the first time) ..."
    python -m pip install -qq --disable-pip-version-check -e ".$1" -c "${2:-constraints.txt}"
    echo "$wanted $1" >"$stamp"
fi
