#!/usr/bin/env bash
# Set-up, then lint, types and tests. Arguments go to pytest.
#   bash scripts/test.sh [-k NAME] [-m "slow or not slow"]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh requirements-dev.txt
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Two test processes with one thread each do not fight over two cores.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest "$@"
