#!/bin/sh
# The paper's world model on one GPU: Stable Diffusion 1.4 tuned on latents that encode_images.py made, batch 128 by
# accumulation, into runs/sd14. Run again, it goes on where it stopped; --dry_run tells first what it takes.
#   sh train_diffusion_scripts/single_gpu_latents.sh LATENTS [flags of train_text_to_image.py, which count over these]
#   sh train_diffusion_scripts/single_gpu_latents.sh latents --use_adamw --output_dir runs/sd14_adamw
# On a GPU with little memory: --train_batch_size 4 --gradient_accumulation_steps 32 --ema_on_cpu
set -eu
if [ $# -lt 1 ]; then
    echo "usage: sh $0 LATENTS [flags of train_text_to_image.py, e.g. --dry_run or --output_dir runs/sd14]" >&2
    exit 2
fi
root=$(dirname "$(CDPATH= cd -P "$(dirname "$0")" && pwd)")  # links resolved: a venv is found by its true path
latents=$1
shift
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    [ ! -x "$root/.venv/bin/python" ] || PYTHON=$root/.venv/bin/python
fi

exec "$PYTHON" "$root/train_text_to_image.py" --dataset_basepath "$latents" --output_dir runs/sd14 --preset sd14 \
    --train_batch_size 16 --gradient_accumulation_steps 8 --max_train_steps 700000 \
    --mixed_precision bf16 --gradient_checkpointing --allow_tf32 --dataloader_num_workers 4 \
    --checkpointing_steps 1000 --validation_steps 5000 "$@"
