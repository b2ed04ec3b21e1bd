#!/bin/sh
# The paper's world model on several GPUs: Stable Diffusion 1.4 tuned on latents that encode_images.py made, batch 128
# shared by all of them, into runs/sd14. Run again, it goes on where it stopped, on another number of GPUs too.
#   sh train_diffusion_scripts/multi_gpus_latents.sh LATENTS [flags of train_text_to_image.py, which count over these]
#   NUM_PROCESSES=4 sh train_diffusion_scripts/multi_gpus_latents.sh latents --use_adamw --output_dir runs/sd14_adamw
# Two machines that share the folders, the same on each but for MACHINE_RANK (0 on the one with MAIN_PROCESS_IP, then 1):
#   NUM_MACHINES=2 MACHINE_RANK=0 MAIN_PROCESS_IP=10.0.0.1 sh train_diffusion_scripts/multi_gpus_latents.sh latents
set -eu
if [ $# -lt 1 ]; then
    echo "usage: [NUM_PROCESSES=8 (GPUs a machine)] [NUM_MACHINES=1 MACHINE_RANK=0 MAIN_PROCESS_IP= MAIN_PROCESS_PORT=29500]" \
        "[GLOBAL_BATCH=128] sh $0 LATENTS [flags of train_text_to_image.py, e.g. --dry_run]" >&2
    exit 2
fi
root=$(dirname "$(CDPATH= cd -P "$(dirname "$0")" && pwd)")  # links resolved: a venv is found by its true path
latents=$1
shift
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    [ ! -x "$root/.venv/bin/python" ] || PYTHON=$root/.venv/bin/python
fi
machines=${NUM_MACHINES:-1}
processes=$((${NUM_PROCESSES:-8} * machines))
batch=${GLOBAL_BATCH:-128}
if [ "$processes" -lt 2 ] || [ $((batch % processes)) -ne 0 ]; then
    echo "$0: $processes GPUs cannot share a batch of $batch; set GLOBAL_BATCH or NUM_PROCESSES, or use" \
        "single_gpu_latents.sh" >&2
    exit 2
fi
if [ "$machines" -gt 1 ] && [ -z "${MAIN_PROCESS_IP:-}" ]; then
    echo "$0: NUM_MACHINES=$machines needs MAIN_PROCESS_IP, the address of the machine with MACHINE_RANK=0" >&2
    exit 2
fi
port=${MAIN_PROCESS_PORT:-0}  # 0: a free one
[ "$machines" -eq 1 ] || port=${MAIN_PROCESS_PORT:-29500}
share=$((batch / processes))  # windows of one GPU and step, in micro-batches of at most 16
accumulation=1
while [ $((share % accumulation)) -ne 0 ] || [ $((share / accumulation)) -gt 16 ]; do
    accumulation=$((accumulation + 1))
done

exec "$PYTHON" -m accelerate.commands.launch --multi_gpu --num_processes "$processes" --num_machines "$machines" \
    --machine_rank "${MACHINE_RANK:-0}" --main_process_ip "${MAIN_PROCESS_IP:-127.0.0.1}" --main_process_port "$port" \
    --mixed_precision bf16 --dynamo_backend no \
    "$root/train_text_to_image.py" --dataset_basepath "$latents" --output_dir runs/sd14 --preset sd14 \
    --train_batch_size $((share / accumulation)) --gradient_accumulation_steps "$accumulation" --max_train_steps 700000 \
    --mixed_precision bf16 --gradient_checkpointing --allow_tf32 --dataloader_num_workers 4 \
    --checkpointing_steps 1000 --validation_steps 5000 "$@"
