#!/usr/bin/env bash
# The whole pipeline, small, on this machine: an agent plays Doom, a neural network learns the game from it and dreams it.
#   bash demo.sh [--minutes M] [--out FOLDER] [--device {auto,cuda,mps,cpu}]
# --minutes: time for the four training stages together (default 14; installing and the rest take up to 9 more on 2 cores).
# Run again, it goes on where it stopped. With more minutes it trains the world model and the decoder on; the recordings
# and the autoencoder's encoder stay as they are, so that the latents stay valid.
set -euo pipefail

usage() { sed -n '2,6s/^# \{0,1\}//p' "$0"; }
refuse() { echo "demo.sh: $1" >&2; exit 2; }

minutes=14
out=demo
device=auto
while [ $# -gt 0 ]; do
    case "$1" in
        --help | -h) usage; exit 0 ;;
        --minutes | --out | --device) [ $# -ge 2 ] || refuse "$1 needs a value" ;;
        *) refuse "$1 is no flag of mine; see bash demo.sh --help" ;;
    esac
    case "$1" in
        --minutes) minutes=$2 ;;
        --out) out=$2 ;;
        --device) device=$2 ;;
    esac
    shift 2
done
export LC_ALL=C
awk -v m="$minutes" 'BEGIN { exit !(m ~ /^[0-9]+([.][0-9]+)?$/ && m >= 2) }' ||
    refuse "--minutes '$minutes' is not a number of at least 2; give for example --minutes 60"
here=$(cd "$(dirname "$0")" && pwd)
case "$out" in /*) ;; *) out=$PWD/$out ;; esac

share() { awk -v m="$1" -v s="$2" 'BEGIN { printf "%.2f", m * s }'; }

# What must not change on a later run with more minutes is kept from the first one.
mkdir -p "$out"
[ -f "$out/first_minutes" ] || echo "$minutes" > "$out/first_minutes"
first=$(cat "$out/first_minutes")
play=$(share "$first" 0.14)
autoencoder=$(share "$first" 0.29)
world_model=$(share "$minutes" 0.45)
decoder=$(share "$minutes" 0.12)

stage() { # number, what it does, how long
    printf '\n[%s/7] %s, about %s\n' "$1" "$2" "$3"
}
show_and_run() {
    printf '+'
    printf ' %q' "$@"
    printf '\n'
    "$@"
}

stage 1 "installing Python packages into $here/.venv" "2 minutes and 0.5 GB the first time"
bash "$here/setup.sh"
python=$here/.venv/bin/python

stage 2 "an agent learns deathmatch on our own map; all its play is recorded" "$play minutes"
show_and_run "$python" "$here/ViZDoomPPO/train_ppo_and_collect_data_parallel.py" --out_base_dir "$out/episodes" --resume \
    --screen_resolution RES_160X120 --n_train_envs 2 --n_eval_envs 1 --n_steps 256 --n_epochs 2 --episode_tics 1050 \
    --eval_episodes 2 --max_train_minutes "$play" --device "$device"

stage 3 "a small autoencoder learns to compress its frames" "$autoencoder minutes"
show_and_run "$python" "$here/finetune_vae.py" --dataset_basepath "$out/episodes" --output_dir "$out/autoencoder" \
    --train_from_scratch --preset small --max_train_minutes "$autoencoder" --checkpointing_steps 200 \
    --dataloader_num_workers 0 --device "$device"

stage 4 "every second frame becomes a latent" "1 minute"
show_and_run "$python" "$here/encode_images.py" --dataset_basepath "$out/episodes" --save_dir_path "$out/latents" \
    --model_folder_or_id "$out/autoencoder" --dataloader_num_workers 0 --device "$device"

stage 5 "a diffusion model learns the next frame from past frames and actions" "$world_model minutes"
show_and_run "$python" "$here/train_text_to_image.py" --dataset_basepath "$out/latents" --output_dir "$out/world_model_run" \
    --preset small --train_batch_size 8 --max_train_minutes "$world_model" --checkpointing_steps 200 \
    --dataloader_num_workers 0 --device "$device"

stage 6 "the autoencoder's decoder is tuned" "$decoder minutes"
show_and_run "$python" "$here/finetune_vae.py" --dataset_basepath "$out/episodes" --output_dir "$out/decoder" \
    --model_folder_or_id "$out/autoencoder" --max_train_minutes "$decoder" --checkpointing_steps 200 \
    --dataloader_num_workers 0 --device "$device"

stage 7 "the model dreams on its own, beside the real game" "half a minute"
show_and_run "$python" "$here/run_autoregressive.py" --dataset_basepath "$out/latents" \
    --unet_model_folder "$out/world_model_run" --vae_ft_model_folder "$out/decoder" \
    --num_episodes 4 --episode_length 64 --overwrite --out "$out/rollouts" --device "$device"

figures() { "$python" - "$out" <<'PYTHON'
import json, pathlib, sys

out = pathlib.Path(sys.argv[1])
lines = [json.loads(line) for line in (out / "world_model_run" / "metrics.jsonl").read_text().splitlines()]
one_step = [line for line in lines if "model_psnr_db" in line][-1]
rows = json.loads((out / "rollouts" / "rollouts.json").read_text())["rows"]
for name in ("copy_last", "constant", "ceiling", "model"):
    ahead = f"{one_step[name + '_psnr_db']:.2f} dB, detail {one_step[name + '_detail']:.2f}"
    rollout = f"{rows[name]['psnr_db']:.2f} dB, detail {rows[name]['detail']:.2f}"
    print(f"  {name:<10} one step ahead {ahead}    over rollouts of 64 frames {rollout}")
PYTHON
}
cat <<TEXT

Done. Look at $out/rollouts/rollout_0.gif: the real game is on the left, the dream on the right. On held-out play:
$(figures)
A first try this short on a CPU gives a recognisable blur: the colours of the rooms, gun and status bar, not yet a game.
For a better one:
  bash demo.sh --minutes 60                                             goes on from here
  sh train_diffusion_scripts/small.sh $out/episodes runs/small          the whole recipe, for a GPU or a patient CPU
TEXT
