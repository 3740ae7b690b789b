#!/usr/bin/env bash
# The whole recipe: about 25 minutes for the autoencoder, 7 for the text encoder, 90 for the U-Net on 2 cores.
# Usage: chain.sh OUT [VAE_SECONDS] [TEXT_SECONDS] [UNET_SECONDS]; PYTHON names the interpreter (requirements.txt).
# Writes the parts and their pictures into OUT, the finished pipeline into OUT/base.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:?usage: chain.sh OUT [VAE_SECONDS] [TEXT_SECONDS] [UNET_SECONDS]}
python=${PYTHON:-python3}
export LORALEI_EMOJI_CACHE=${LORALEI_EMOJI_CACHE:-$out/cache}
mkdir -p "$out"
"$python" "$here/tokenizer.py" --out "$out"
"$python" "$here/train_vae.py" --out "$out" --seconds "${2:-1500}"
"$python" "$here/train_text.py" --out "$out" --seconds "${3:-400}"
"$python" "$here/train_unet.py" --out "$out" --seconds "${4:-5400}"
"$python" "$here/package.py" --out "$out" "$out/base"
"$python" "$here/evaluate.py" --base "$out/base" --grid "$out/evaluation.png"
