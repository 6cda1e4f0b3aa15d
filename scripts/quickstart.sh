#!/usr/bin/env bash
# Set-up, then the toy world: score the shipped weights on longer videos than they know, train them on such, score
# again, segment the sample clip. Each step is left out where an earlier call has finished it.
#   bash scripts/quickstart.sh           # less than 20 minutes on two CPU cores
#   bash scripts/quickstart.sh --demo    # set-up and the sample clip alone
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ $# -gt 1 ] || [ "${1:---demo}" != --demo ]; then
    echo "usage: bash scripts/quickstart.sh [--demo]" >&2
    exit 2
fi
bash scripts/setup.sh requirements.txt
python=.venv/bin/python
root=output/quickstart
toy=(--wan_path assets/toy/flowrvs --vae_ckpt assets/toy/mask_vae)

score() { # NAME [WEIGHT FLAGS]: J&F on valid_u, by kind of sentence
    [ -f "$root/$1/metrics.json" ] || "$python" inference_mevis.py --split valid_u --mevis_path "$root/toy-mevis" \
        --output_dir "$root/$1" "${toy[@]}" "${@:2}"
}

segment() { # [FLAGS]: the sample clip, into output/sample_result.mp4
    "$python" inference_demo.py --input_path assets/toy/sample.mp4 --output_dir output "${toy[@]}" "$@" \
        --text_prompts "the triangle moving right" "the triangle that stays still"
}

if [ $# -eq 1 ]; then
    segment --fps 4 # of its 17 frames the nine that the shipped weights know
    exit
fi
[ -d "$root/toy-mevis" ] || "$python" -m datasets.toy --out "$root/toy-mevis" --seed 20 --num_frames 17 \
    --num_train 300 --num_valid_u 30
score before
"$python" main.py --config configs/toy_quickstart.yaml --toy_path "$root/toy-mevis" \
    --latent_cache "$root/latents" --output_dir "$root/run" --resume auto
score after --dit_ckpt "$root/run"
segment --dit_ckpt "$root/run"
