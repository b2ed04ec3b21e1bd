#!/bin/sh
# The recipe of the shipped policy, logs/models/deathmatch_simple/best_model.zip: PPO on our map, all its play recorded at
# every second tic. Run again, it goes on where it stopped.
#   sh ViZDoomPPO/train_deathmatch_simple.sh OUT [STEPS [flags of the trainer, e.g. --device cuda]]
set -eu
if [ $# -lt 1 ]; then
    echo "usage: sh $0 OUT [STEPS [flags of train_ppo_and_collect_data_parallel.py, e.g. --device cuda]]" >&2
    exit 2
fi
here=$(CDPATH= cd -P "$(dirname "$0")" && pwd)
out=$1
steps=${2:-425000}
shift
[ $# -eq 0 ] || shift
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    [ ! -x "$here/../.venv/bin/python" ] || PYTHON=$here/../.venv/bin/python
fi

# One thread for the network: the games need the other cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

train() {
    "$PYTHON" "$here/train_ppo_and_collect_data_parallel.py" --out_base_dir "$out" --resume \
        --reward hunt --observation_shrink 2 --screen_resolution RES_160X120 --record_stride 2 \
        --bots 12 --start_level 2 --episode_tics 2100 --n_train_envs 8 \
        --gamma 0.97 --gae_lambda 0.9 --eval_freq 100000 "$@"
}

# First in large steps, which after 300,000 agent steps are larger than what so few kills can tell (an update then moved
# the policy by 0.05 nats); then in small ones from more play each, soon against the ablest bots.
train --n_steps 256 --batch_size 512 --n_epochs 4 --learning_rate 7e-4 --ent_coef 0.005 \
    --level_returns 3 4 6 7 8 --total_timesteps 301056 "$@"
train --n_steps 512 --batch_size 1024 --n_epochs 3 --learning_rate 2.5e-4 --ent_coef 0.01 \
    --level_returns 3 4 6 4 3 --total_timesteps "$steps" "$@"
