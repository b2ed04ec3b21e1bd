#!/usr/bin/env bash
# The whole pipeline, small, on this machine: an agent plays Doom, a neural network learns the game from its play and dreams it.
#   bash demo.sh [--minutes M] [--out FOLDER] [--device {auto,cuda,mps,cpu}]
# --minutes: time for the four training stages together (default 14; installation and the rest take up to 9 more on 2 cores).
# Run again, it goes on where it stopped. With more minutes it trains the world model and the decoder on; the recordings
# and the autoencoder's encoder stay as they are, so that the latents stay valid.
set -euo pipefail

minutes=14
out=demo
device=auto
while [ $# -gt 0 ]; do
    case "$1" in
        --minutes) minutes=${2:-}; shift ;;
        --out) out=${2:-}; shift ;;
        --device) device=${2:-}; shift ;;
        *) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; [ "$1" = --help ] && exit 0; exit 2 ;;
    esac
    shift
done
case "$minutes" in
    ''|*[!0-9.]*|*.*.*) echo "demo.sh: --minutes '$minutes' is not a number; give for example --minutes 60" >&2; exit 2 ;;
esac
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
    printf '+ %s\n' "$*"
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
    --train_from_scratch --preset small --max_train_minutes "$autoencoder" --dataloader_num_workers 1 --device "$device"

stage 4 "every second frame becomes a latent" "2 minutes"
show_and_run "$python" "$here/encode_images.py" --dataset_basepath "$out/episodes" --save_dir_path "$out/latents" \
    --model_folder_or_id "$out/autoencoder" --dataloader_num_workers 1 --device "$device"

stage 5 "a diffusion model learns the next frame from past frames and actions" "$world_model minutes"
show_and_run "$python" "$here/train_text_to_image.py" --dataset_basepath "$out/latents" --output_dir "$out/world_model_run" \
    --preset small --max_train_minutes "$world_model" --dataloader_num_workers 0 --device "$device"

stage 6 "the autoencoder's decoder is tuned" "$decoder minutes"
show_and_run "$python" "$here/finetune_vae.py" --dataset_basepath "$out/episodes" --output_dir "$out/decoder" \
    --model_folder_or_id "$out/autoencoder" --max_train_minutes "$decoder" --dataloader_num_workers 1 --device "$device"

stage 7 "the model dreams on its own, beside the real game" "half a minute"
show_and_run "$python" "$here/run_autoregressive.py" --dataset_basepath "$out/latents" \
    --unet_model_folder "$out/world_model_run" --vae_ft_model_folder "$out/decoder" \
    --num_episodes 4 --episode_length 64 --out "$out/rollouts" --device "$device"

cat <<TEXT

Done. Look at $out/rollouts/rollout_0.gif: the real game is on the left, the dream on the right.
The figures above are one rollout measure; $out/world_model_run/metrics.jsonl has those of one step ahead.
After $minutes minutes of training on a CPU the dream is a recognisable blur of the map, not yet a game. For a better one:
  bash demo.sh --minutes 60          goes on from here
  sh train_diffusion_scripts/small.sh EPISODES          the whole recipe, for a GPU or a patient CPU
TEXT
