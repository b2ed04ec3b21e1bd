#!/bin/sh
# Data for a `small` world model of our map, 2.1 million tics: exploration, the shipped agent's play on five levels, and all
# play of an agent that begins at random (of which what ships saw every fourth episode); 160x120, every
# second tic, with depth. Run again, it goes on where it stopped.
#   sh ViZDoomPPO/record_small.sh EPISODES [flags of the three recorders, e.g. --device cpu]
set -eu
if [ $# -lt 1 ]; then
    echo "usage: sh $0 EPISODES [flags of the recorders, e.g. --device cpu]" >&2
    exit 2
fi
here=$(CDPATH= cd -P "$(dirname "$0")" && pwd)
out=$1
shift
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    [ ! -x "$here/../.venv/bin/python" ] || PYTHON=$here/../.venv/bin/python
fi
export PYTHON OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

record() {
    "$PYTHON" "$here/load_model_generate_dataset.py" --screen_resolution RES_160X120 --record_stride 2 --record_depth \
        --episode_tics 2100 --output parquet "$@"
}

# 252,000 tics of what a person does and an agent does not; held-out episodes first.
record --output_dir "$out/explore" --policy explore --level 2 --bots 4 --split eval --episodes 12 "$@"
record --output_dir "$out/explore" --policy explore --level 2 --bots 4 --episodes 120 "$@"
# 168,000 tics of the finished agent.
for level in 2 5; do
    record --output_dir "$out/agent" --level $level --bots 6 --split eval --episodes 2 "$@"
done
for level in 1 2 3 4 5; do
    record --output_dir "$out/agent" --level $level --bots 6 --episodes 16 "$@"
done
# An agent from its first step on, 4 tics each, as train_deathmatch_simple.sh made the shipped one.
sh "$here/train_deathmatch_simple.sh" "$out/training" 425000 --record_depth "$@"
