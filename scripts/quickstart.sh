#!/usr/bin/env bash
# Set-up, then the demo on the clip that ships in assets/. Without weights a random toy model runs: see README.md.
#   bash scripts/quickstart.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh requirements.txt
.venv/bin/python inference_demo.py --input_path assets/shapes.mp4 \
    --text_prompts "the red circle" "the square moving left" --output_dir output
