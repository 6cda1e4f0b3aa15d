#!/usr/bin/env bash
# Makes .venv beside the code and installs a requirements file into it; does nothing where that was done before.
#   bash scripts/setup.sh requirements.txt && source .venv/bin/activate
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
requirements=${1:?"usage: bash scripts/setup.sh REQUIREMENTS"}
for python in "${PYTHON:-python3}" python3.11 python3.12 python3.13 none; do
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
done
if [ "$python" = none ]; then
    echo "Python 3.11 or newer is needed; install it, or set PYTHON to its path" >&2
    exit 1
fi
# The stamp holds what was installed: a changed requirements file installs again, an interrupted run too.
stamp=.venv/installed-$(basename "$requirements")
wanted=$(cat requirements.txt "$requirements")
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    echo "Installing $requirements into .venv (minutes the first time) ..."
    # Torch by itself first: asked for by other packages as a range, a newer build would be fetched and replaced.
    .venv/bin/python -m pip install --quiet "$(grep '^torch==' requirements.txt)"
    .venv/bin/python -m pip install --quiet -r "$requirements"
    printf '%s\n' "$wanted" >"$stamp"
fi
