#!/usr/bin/env bash
# Set-up, then the toy world: score the shipped weights, train them further, score again, segment the sample clip.
# Each step is left out where an earlier call has finished it.
#   bash scripts/quickstart.sh           # less than 20 minutes on two CPU cores
#   bash scripts/quickstart.sh --demo    # set-up and the sample clip alone
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "${1:---demo}" != --demo ]; then
    echo "usage: bash scripts/quickstart.sh [--demo]" >&2
    exit 2
fi
bash scripts/setup.sh requirements.txt
python=.venv/bin/python
root=output/quickstart
weights=(--wan_path assets/toy/flowrvs --vae_ckpt assets/toy/mask_vae)

score() { # NAME [WEIGHT FLAGS]: J&F on valid_u, by kind of sentence
    local folder=$root/$1
    [ -f "$folder/metrics.json" ] || "$python" inference_mevis.py --split valid_u --mevis_path "$root/toy-mevis" \
        --output_dir "$folder" "${weights[@]}" "${@:2}"
}

if [ $# -eq 0 ]; then
    [ -d "$root/toy-mevis" ] || "$python" -m datasets.toy --out "$root/toy-mevis" --seed 20 --num_train 300
    score before
    "$python" main.py --config configs/toy_quickstart.yaml --mevis_path "$root/toy-mevis" \
        --latent_cache "$root/latents" --output_dir "$root/run" --resume auto
    score after --dit_ckpt "$root/run/$(cat "$root/run/latest")"
    weights+=(--dit_ckpt "$root/run/$(cat "$root/run/latest")")
fi
"$python" inference_demo.py --input_path assets/toy/sample.mp4 --output_dir output "${weights[@]}" \
    --text_prompts "the green circle" "the triangle moving right"
