#!/bin/sh
# The decoder of the `small` recipe, which calls this: tunes the autoencoder that train_diffusion_scripts/small.sh made on a
# game's frames; the encoder stays, so its latents and world models stay valid. Run again, it goes on where it stopped.
#   sh finetune_vae_scripts/small.sh EPISODES [OUT [flags of finetune_vae.py]]
#   sh finetune_vae_scripts/small.sh episodes runs/small --max_train_minutes 30
set -eu
if [ $# -lt 1 ]; then
    echo "usage: sh $0 EPISODES [OUT [flags of finetune_vae.py, e.g. --max_train_minutes 30]]" >&2
    exit 2
fi
root=$(dirname "$(CDPATH= cd -P "$(dirname "$0")" && pwd)")  # links resolved: a venv is found by its true path
episodes=$1
out=${2:-runs/small}
shift
[ $# -eq 0 ] || shift
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    [ ! -x "$root/.venv/bin/python" ] || PYTHON=$root/.venv/bin/python
fi
if [ ! -f "$out/latents/latent_black.pt" ]; then
    echo "$0: $out/autoencoder is not finished yet; run train_diffusion_scripts/small.sh $episodes $out first" >&2
    exit 2
fi

# The decoder that ships: worn frames, against the blur that a rollout adds to itself.
"$PYTHON" "$root/finetune_vae.py" --dataset_basepath "$episodes" --output_dir "$out/decoder" \
    --model_folder_or_id "$out/autoencoder" --channels_last yes --worn_share 0.6 \
    --max_train_steps 1200 --learning_rate 3e-4 --lr_scheduler cosine --ema_decay 0.99 --save_dtype float16 "$@"
echo "a tuned decoder: $out/decoder/autoencoder; play with it as --vae_ft_model_folder"
