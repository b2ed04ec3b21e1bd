#!/bin/sh
# The paper's decoder tuning on one GPU: Stable Diffusion 1.4's autoencoder, its encoder untouched, plain MSE, batch 2048
# by accumulation, into runs/sd14_decoder. Run again, it goes on where it stopped. Paper: the steps are not stated.
#   sh finetune_vae_scripts/single_gpu.sh EPISODES [flags of finetune_vae.py, which count over these]
#   sh finetune_vae_scripts/single_gpu.sh episodes --max_train_minutes 600
# On a GPU with little memory: --batch_size 2 --gradient_accumulation_steps 1024
set -eu
if [ $# -lt 1 ]; then
    echo "usage: sh $0 EPISODES [flags of finetune_vae.py, e.g. --output_dir runs/sd14_decoder]" >&2
    exit 2
fi
root=$(dirname "$(CDPATH= cd -P "$(dirname "$0")" && pwd)")  # links resolved: a venv is found by its true path
episodes=$1
shift
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    [ ! -x "$root/.venv/bin/python" ] || PYTHON=$root/.venv/bin/python
fi

exec "$PYTHON" "$root/finetune_vae.py" --dataset_basepath "$episodes" --output_dir runs/sd14_decoder --preset sd14 \
    --batch_size 8 --gradient_accumulation_steps 256 --max_train_steps 5000 \
    --mixed_precision bf16 --allow_tf32 --dataloader_num_workers 4 \
    --checkpointing_steps 50 --validation_steps 250 "$@"
