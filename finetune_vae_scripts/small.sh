#!/bin/sh
# Tunes the decoder of a `small` autoencoder on a game's frames; the encoder stays, so its latents and models stay valid.
#   sh finetune_vae_scripts/small.sh EPISODES [OUT [trainer flags]]
#   sh finetune_vae_scripts/small.sh episodes runs/small --max_train_minutes 30
set -eu
if [ $# -lt 1 ]; then
    echo "usage: sh $0 EPISODES [OUT [flags of finetune_vae.py, e.g. --max_train_minutes 30]]" >&2
    exit 2
fi
root=$(dirname "$0")/..
episodes=$1
out=${2:-runs/small}
shift
[ $# -eq 0 ] || shift
python=${PYTHON:-python}

[ -d "$out/autoencoder/autoencoder" ] || "$python" "$root/finetune_vae.py" --dataset_basepath "$episodes" \
    --output_dir "$out/autoencoder" --train_from_scratch --preset small --max_train_steps 40000 "$@"
"$python" "$root/finetune_vae.py" --dataset_basepath "$episodes" --output_dir "$out/decoder" \
    --model_folder_or_id "$out/autoencoder" --max_train_steps 20000 "$@"
echo "a tuned decoder: $out/decoder/autoencoder; give it as --vae_ft_model_folder"
