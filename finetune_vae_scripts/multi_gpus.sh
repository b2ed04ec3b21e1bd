#!/bin/sh
# The paper's decoder tuning on several GPUs: Stable Diffusion 1.4's autoencoder, its encoder untouched, plain MSE, batch
# 2048 shared by all, into runs/sd14_decoder. Run again, it goes on where it stopped, on another number of GPUs too.
#   sh finetune_vae_scripts/multi_gpus.sh EPISODES [flags of finetune_vae.py, which count over these]
#   NUM_PROCESSES=4 sh finetune_vae_scripts/multi_gpus.sh episodes --max_train_minutes 600
# Two machines that share the folders, the same on each but for MACHINE_RANK (0 on the one with MAIN_PROCESS_IP, then 1):
#   NUM_MACHINES=2 MACHINE_RANK=0 MAIN_PROCESS_IP=10.0.0.1 sh finetune_vae_scripts/multi_gpus.sh episodes
set -eu
if [ $# -lt 1 ]; then
    echo "usage: [NUM_PROCESSES=8 (GPUs a machine)] [NUM_MACHINES=1 MACHINE_RANK=0 MAIN_PROCESS_IP= MAIN_PROCESS_PORT=29500]" \
        "[GLOBAL_BATCH=2048] sh $0 EPISODES [flags of finetune_vae.py, e.g. --output_dir runs/sd14_decoder]" >&2
    exit 2
fi
root=$(dirname "$(CDPATH= cd -P "$(dirname "$0")" && pwd)")  # links resolved: a venv is found by its true path
episodes=$1
shift
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    [ ! -x "$root/.venv/bin/python" ] || PYTHON=$root/.venv/bin/python
fi
machines=${NUM_MACHINES:-1}
processes=$((${NUM_PROCESSES:-8} * machines))
batch=${GLOBAL_BATCH:-2048}
if [ "$processes" -lt 2 ] || [ $((batch % processes)) -ne 0 ]; then
    echo "$0: $processes GPUs cannot share a batch of $batch; set GLOBAL_BATCH or NUM_PROCESSES, or use" \
        "single_gpu.sh" >&2
    exit 2
fi
if [ "$machines" -gt 1 ] && [ -z "${MAIN_PROCESS_IP:-}" ]; then
    echo "$0: NUM_MACHINES=$machines needs MAIN_PROCESS_IP, the address of the machine with MACHINE_RANK=0" >&2
    exit 2
fi
port=${MAIN_PROCESS_PORT:-0}  # 0: a free one
[ "$machines" -eq 1 ] || port=${MAIN_PROCESS_PORT:-29500}
share=$((batch / processes))  # frames of one GPU and step, in micro-batches of at most 8
accumulation=1
while [ $((share % accumulation)) -ne 0 ] || [ $((share / accumulation)) -gt 8 ]; do
    accumulation=$((accumulation + 1))
done

exec "$PYTHON" -m accelerate.commands.launch --multi_gpu --num_processes "$processes" --num_machines "$machines" \
    --machine_rank "${MACHINE_RANK:-0}" --main_process_ip "${MAIN_PROCESS_IP:-127.0.0.1}" --main_process_port "$port" \
    --mixed_precision bf16 --dynamo_backend no \
    "$root/finetune_vae.py" --dataset_basepath "$episodes" --output_dir runs/sd14_decoder --preset sd14 \
    --batch_size $((share / accumulation)) --gradient_accumulation_steps "$accumulation" --max_train_steps 5000 \
    --mixed_precision bf16 --allow_tf32 --dataloader_num_workers 4 \
    --checkpointing_steps 50 --validation_steps 250 "$@"
