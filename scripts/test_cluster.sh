#!/usr/bin/env bash
# A Slurm cluster of two nodes in a box, and runs that are disturbed on it: bash scripts/test_cluster.sh [SCENARIO]...
# Needs root, Debian or Ubuntu, and network namespaces; says so and ends with status 0 where it has not got them.
# About eight minutes on two cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh "[dev]"
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 # no run waits for a network; logs are read as they are written
exec python scripts/experiments/cluster.py "$@"
