#!/bin/sh
# The whole `small` recipe: episodes in, a playable world model out. Run again, every stage goes on where it stopped; the
# autoencoder stays as it is once there are latents made with it, so that a larger budget never mixes encoders.
#   sh train_diffusion_scripts/small.sh EPISODES [OUT [flags of both trainers]]
#   sh train_diffusion_scripts/small.sh episodes runs/small --max_train_minutes 60      (60 for each trainer)
set -eu
if [ $# -lt 1 ]; then
    echo "usage: sh $0 EPISODES [OUT [flags of both trainers, e.g. --max_train_minutes 60, for each of them]]" >&2
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

[ -f "$out/latents/latent_black.pt" ] || "$PYTHON" "$root/finetune_vae.py" --dataset_basepath "$episodes" \
    --output_dir "$out/autoencoder" --train_from_scratch --preset small --max_train_steps 40000 "$@"
"$PYTHON" "$root/encode_images.py" --dataset_basepath "$episodes" --save_dir_path "$out/latents" \
    --model_folder_or_id "$out/autoencoder"
"$PYTHON" "$root/train_text_to_image.py" --dataset_basepath "$out/latents" --output_dir "$out/world_model_run" \
    --preset small --max_train_steps 100000 "$@"
echo "a playable model: $out/world_model_run/world_model"
