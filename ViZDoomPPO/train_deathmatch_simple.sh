#!/bin/sh
# The recipe of the shipped policy, logs/models/deathmatch_simple/best_model.zip: PPO on our map, all its play recorded at
# every second tic. Run again, it goes on where it stopped.
#   sh ViZDoomPPO/train_deathmatch_simple.sh OUT [flags of the trainer, e.g. --max_train_minutes 60]
set -eu
if [ $# -lt 1 ]; then
    echo "usage: sh $0 OUT [flags of train_ppo_and_collect_data_parallel.py, e.g. --max_train_minutes 60]" >&2
    exit 2
fi
here=$(CDPATH= cd -P "$(dirname "$0")" && pwd)
out=$1
shift
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    [ ! -x "$here/../.venv/bin/python" ] || PYTHON=$here/../.venv/bin/python
fi

# One thread for the network: the games need the other cores.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} exec "$PYTHON" "$here/train_ppo_and_collect_data_parallel.py" \
    --out_base_dir "$out" --resume \
    --reward hunt --observation_shrink 2 --screen_resolution RES_160X120 --record_stride 2 \
    --bots 12 --start_level 2 --level_returns 3 4 6 7 8 --episode_tics 2100 \
    --n_train_envs 8 --n_steps 256 --batch_size 512 --n_epochs 4 --learning_rate 7e-4 \
    --gamma 0.97 --gae_lambda 0.9 --ent_coef 0.005 --eval_freq 100000 --total_timesteps 3000000 "$@"
