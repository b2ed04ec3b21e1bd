#!/bin/sh
# The whole `small` recipe: episodes in, a playable world model out, the one that ships: times, logs and figures are in
# benchmarks/README.md. Run again, every stage goes on where it stopped; what a later stage was made with stays as it is once
# that stage has begun (the autoencoder under its latents, decoder and motion under the world model), so that a larger budget
# goes to the last one.
# Of an agent's training, in a local folder as record_small.sh makes it, every fourth episode is encoded, which is more than
# these steps look at; THIN=training/train=2 takes every second one, THIN= all. MEMORY=no makes a model without a memory of
# the map: for play recorded without --record_depth, or in many maps.
#   sh train_diffusion_scripts/small.sh EPISODES [OUT [flags of every trainer]]
#   sh train_diffusion_scripts/small.sh episodes runs/small --max_train_minutes 60      (60 for each of them)
set -eu
if [ $# -lt 1 ]; then
    echo "usage: sh $0 EPISODES [OUT [flags of every trainer, e.g. --max_train_minutes 60, for each of them]]" >&2
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

if [ "${MEMORY:-yes}" != no ]; then  # else these would be found out after half an hour
    if [ -d "$out/motion" ] && [ ! -d "$out/motion_begun" ] && [ ! -f "$out/world_model_run/run.json" ]; then
        echo "$0: $out/motion is of another recipe, whose models do not draw; give another OUT, or MEMORY=no to go on" >&2
        exit 2
    fi
    PYTHONPATH=$root "$PYTHON" - "$episodes" <<'PYTHON'
import sys

import command_line
from command_line import BadInput
from dataset_folders import dataset_folder
from episodes import find_episodes, inspect_episode


def main(args):
    for path in find_episodes(dataset_folder(args.episodes, "episodes")):
        if not inspect_episode(path).metadata.get("camera"):
            raise BadInput(f"{path} has no depth; record with --record_depth, or say MEMORY=no")


sys.argv[0] = "small.sh"
arguments = command_line.parser("")
arguments.add_argument("episodes")
command_line.run(main, arguments)
PYTHON
fi

# A CPU that knows bfloat16 is faster with --mixed_precision bf16, which encoding follows.
dtype=fp32
before=
for word in "$@"; do
    case "$before $word" in
        "--mixed_precision bf16" | *" --mixed_precision=bf16") dtype=bf16 ;;
        "--mixed_precision "* | *" --mixed_precision="*) dtype=fp32 ;;
    esac
    before=$word
done
thin=${THIN-training/train=4}
[ -d "$episodes/${thin%=*}" ] || thin=

# Without --torch_compile, which costs more than it saves where sizes change, as over a memory.
eagerly() {
    for word in "$@"; do
        shift
        [ "$word" = --torch_compile ] || set -- "$@" "$word"
    done
    "$@"
}

# float16 is what ships, and what the latents are then made with.
[ -f "$out/latents/latent_black.pt" ] || "$PYTHON" "$root/finetune_vae.py" --dataset_basepath "$episodes" \
    --output_dir "$out/autoencoder" --train_from_scratch --preset small --channels_last yes \
    --max_train_steps 1600 --learning_rate 4e-4 --lr_scheduler cosine --ema_decay 0.998 --save_dtype float16 "$@"
"$PYTHON" "$root/encode_images.py" --dataset_basepath "$episodes" --save_dir_path "$out/latents" \
    --model_folder_or_id "$out/autoencoder" --dtype $dtype ${thin:+--thin "$thin"}

# The decoder before what looks through it: a frame is decoded, moved and encoded again whenever the next one is drawn.
if [ ! -f "$out/world_model_run/run.json" ]; then
    PYTHON=$PYTHON sh "$root/finetune_vae_scripts/small.sh" "$episodes" "$out" "$@"
    train_motion() {
        name=$1
        shift
        "$PYTHON" "$root/train_motion.py" --dataset_basepath "$out/latents" --output_dir "$out/$name" \
            --channels_last yes --vae_folder_or_id "$out/decoder" --learning_rate 2e-3 --lr_scheduler cosine --ema_decay 0.98 \
            --save_dtype float16 "$@"
    }
    if [ "${MEMORY:-yes}" = no ]; then
        train_motion motion --event_share 0.2 --batch_size 64 --max_train_steps 2600 "$@"
    else
        [ -d "$out/motion_begun" ] || eagerly "$PYTHON" "$root/train_scene_memory.py" --dataset_basepath "$out/latents" \
            --output_dir "$out/scene_memory" --vae_folder_or_id "$out/decoder" --max_train_steps 4000 \
            --lr_scheduler cosine --ema_decay 0.98 --save_dtype float16 "$@"
        # From recorded frames first; then from up to sixteen of its own, in which a weapon may have been lost.
        [ -d "$out/motion" ] || eagerly train_motion motion_begun --scene_memory_folder "$out/scene_memory" \
            --event_share 0.2 --max_train_steps 1000 "$@"
        eagerly train_motion motion --pretrained_model_name_or_path "$out/motion_begun" --event_share 0.5 \
            --own_frames 16 --own_frames_share 0.5 --max_train_steps 3000 "$@"
    fi
fi

# Against drift some of the last frames are drawn by the model itself; what is rare is seen more often than it happens.
"$PYTHON" "$root/train_text_to_image.py" --dataset_basepath "$out/latents" --output_dir "$out/world_model_run" \
    --preset small --vae_folder_or_id "$out/decoder" --motion_folder "$out/motion" --channels_last yes \
    --max_train_steps 1300 --learning_rate 8e-4 --lr_scheduler cosine --ema_decay 0.998 --context_noise 0.3 \
    --own_frames 3 --own_frames_share 0.25 --event_share 0.4 --num_start_contexts 6 --save_dtype float16 "$@"
echo "a playable model: $out/world_model_run/world_model"
