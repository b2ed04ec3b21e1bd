#!/usr/bin/env bash
# A neural network dreams Doom, on this machine. As it stands, the model that ships learns on:
#   bash demo.sh [--minutes M] [--model_folder FOLDER]
# records fresh play, trains each network of the model on from its weights, and shows what that changed. The whole
# pipeline from nothing, an agent that learns to play and networks that learn the game from its play:
#   bash demo.sh --from_scratch [--minutes M]
# --minutes: time for the training stages together (default 5, of --from_scratch 14; what is around them takes up to 7,
#   of --from_scratch 9, on 2 cores, installing included).
# --model_folder: another world model of our map to go on from.  --device {auto,cuda,mps,cpu}
# --out FOLDER (default demo/continued, of --from_scratch demo).  --play [--port P]: opens the page to play on at the end.
# Run again, it goes on where it stopped; with more minutes it trains on. From scratch the recordings and the
# autoencoder's encoder then stay as they are, so that the latents stay valid.
set -euo pipefail

usage() { sed -n '2,13s/^# \{0,1\}//p' "$0"; }
refuse() { echo "demo.sh: $1" >&2; exit 2; }

here=$(cd "$(dirname "$0")" && pwd)
way=shipped
minutes=
model=
out=
device=auto
play=no
port=8000
while [ $# -gt 0 ]; do
    case "$1" in
        --help | -h) usage; exit 0 ;;
        --from_scratch) way=scratch; shift; continue ;;
        --play) play=yes; shift; continue ;;
        --minutes | --model_folder | --out | --device | --port) [ $# -ge 2 ] || refuse "$1 needs a value" ;;
        *) refuse "$1 is no flag of mine; see bash demo.sh --help" ;;
    esac
    case "$1" in
        --minutes) minutes=$2 ;;
        --model_folder) model=$2 ;;
        --out) out=$2 ;;
        --device) device=$2 ;;
        --port) port=$2 ;;
    esac
    shift 2
done
least=0.1
if [ "$way" = scratch ]; then
    least=2
    [ -z "$model" ] || refuse "--model_folder with --from_scratch: one goes on from a model, the other from nothing; leave one out"
fi
case "$way" in
    shipped) minutes=${minutes:-5}; out=${out:-demo/continued} ;;
    scratch) minutes=${minutes:-14}; out=${out:-demo} ;;
esac
export LC_ALL=C
awk -v m="$minutes" -v l="$least" 'BEGIN { exit !(m ~ /^[0-9]+([.][0-9]+)?$/ && m >= l) }' ||
    refuse "--minutes '$minutes' is not a number of at least $least; give for example --minutes 60"
case "$out" in /*) ;; *) out=$PWD/$out ;; esac

if [ "$way" = shipped ]; then
    if [ -z "$model" ]; then
        model=$here/assets/models/small
        [ -f "$model/config.json" ] ||
            refuse "no model ships in $model; make one from nothing with bash demo.sh --from_scratch, or name one with --model_folder"
    fi
    [ ! -f "$model/world_model/config.json" ] || model=$model/world_model  # a run folder
    [ -f "$model/unet/config.json" ] || refuse "--model_folder $model: not a world-model folder; train_text_to_image.py writes them"
    model=$(cd "$model" && pwd)
fi

# A folder holds the work of one way, and of one model.
mkdir -p "$out"
if [ "$way" = scratch ]; then
    [ ! -f "$out/started_from" ] || refuse "$out goes on from $(cat "$out/started_from"); name another folder with --out"
    [ -f "$out/first_minutes" ] || echo "$minutes" > "$out/first_minutes"
else
    [ ! -f "$out/first_minutes" ] || refuse "$out was begun with --from_scratch; add it, or name another folder with --out"
    [ -f "$out/started_from" ] || echo "$model" > "$out/started_from"
    [ "$(cat "$out/started_from")" = "$model" ] ||
        refuse "$out goes on from $(cat "$out/started_from"), not $model; name another folder with --out"
fi

share() { awk -v m="$1" -v s="$2" 'BEGIN { printf "%.2f", m * s }'; }
number() { awk -v m="$1" -v s="$2" 'BEGIN { n = int(m * s); print n < 1 ? 1 : n }'; }
stage() { # number, what it does, how long
    printf '\n[%s/7] %s, about %s\n' "$1" "$2" "$3"
}
show_and_run() {
    printf '+'
    printf ' %q' "$@"
    printf '\n'
    "$@"
}
roll_out() { # model, decoder, folder for the rollouts
    show_and_run "$python" "$here/run_autoregressive.py" --dataset_basepath "$out/latents" \
        --unet_model_folder "$1" --vae_ft_model_folder "$2" \
        --num_episodes 4 --episode_length 64 --overwrite --out "$3" --device "$device"
}
figures() { # of the run in $out, and with a row for the model as it ships where the run went on from that one
    "$python" - "$out" <<'PYTHON'
import json, pathlib, sys

out = pathlib.Path(sys.argv[1])
lines = [json.loads(line) for line in (out / "world_model_run" / "metrics.jsonl").read_text().splitlines()]
measured = [line for line in lines if "model_psnr_db" in line]
rollouts = {path.parent.name: json.loads(path.read_text())["rows"] for path in out.glob("rollouts*/rollouts.json")}


def show(title, one_step, rollout, name):
    ahead = f"{one_step[name + '_psnr_db']:.2f} dB, detail {one_step[name + '_detail']:.2f}"
    whole = f"{rollout[name]['psnr_db']:.2f} dB, detail {rollout[name]['detail']:.2f}"
    print(f"  {title:<10} one step ahead {ahead}    over rollouts of 64 frames {whole}")


for name in ("copy_last", "constant", "ceiling"):
    show(name, measured[-1], rollouts["rollouts"], name)
if "rollouts_shipped" in rollouts:
    show("shipped", measured[0], rollouts["rollouts_shipped"], "model")
show("continued" if "rollouts_shipped" in rollouts else "model", measured[-1], rollouts["rollouts"], "model")
PYTHON
}

stage 1 "installing Python packages into $here/.venv" "2 minutes and 0.5 GB the first time"
bash "$here/setup.sh"
python=$here/.venv/bin/python

record() { # what it does, how many, further flags; small pictures of every second tic, a minute of play each
    local policy=$1 episodes=$2
    shift 2
    show_and_run "$python" "$here/ViZDoomPPO/load_model_generate_dataset.py" --policy "$policy" --episodes "$episodes" \
        --output parquet --output_dir "$out/episodes" --screen_resolution RES_160X120 --record_stride 2 \
        --record_depth --episode_tics 2100 "$@"
}

go_on_from_shipped() {
    local agent=$here/ViZDoomPPO/logs/models/deathmatch_simple/best_model.zip split world_model decoder
    world_model=$(share "$minutes" 0.8)
    decoder=$(share "$minutes" 0.2)

    stage 2 "the shipped agent plays our map, and the explorer tries it out; their play is recorded" "1 minute"
    record "$agent" "$(number "$minutes" 1.2)" --bots 6 --device "$device"
    record explore "$(number "$minutes" 0.8)" --level 2 --bots 4
    record "$agent" 1 --bots 6 --device "$device" --split eval
    record explore 1 --level 2 --bots 4 --split eval

    stage 3 "every second frame becomes a latent of the shipped autoencoder" "1 minute"
    show_and_run "$python" "$here/encode_images.py" --dataset_basepath "$out/episodes" --save_dir_path "$out/latents" \
        --model_folder_or_id "$model" --dataloader_num_workers 0 --device "$device"

    stage 4 "the shipped world model learns on from this play" "$world_model minutes"
    show_and_run "$python" "$here/train_text_to_image.py" --dataset_basepath "$out/latents" \
        --output_dir "$out/world_model_run" --pretrained_model_name_or_path "$model" --learning_rate 5e-5 \
        --max_train_minutes "$world_model" --checkpointing_steps 200 --dataloader_num_workers 0 --device "$device"

    stage 5 "the shipped autoencoder's decoder is tuned" "$decoder minutes"
    show_and_run "$python" "$here/finetune_vae.py" --dataset_basepath "$out/episodes" --output_dir "$out/decoder" \
        --model_folder_or_id "$model" --max_train_minutes "$decoder" --checkpointing_steps 200 \
        --dataloader_num_workers 0 --device "$device"

    stage 6 "the shipped model dreams on its own, beside the real game" "half a minute"
    roll_out "$model" "$model" "$out/rollouts_shipped"

    stage 7 "the model that learned on does" "half a minute"
    roll_out "$out/world_model_run" "$out/decoder" "$out/rollouts"
    cat <<TEXT

Done. Look at $out/rollouts/rollout_0.gif: the real game is on the left, the dream on the right. On held-out play:
$(figures)
Play the shipped model, and the one that learned on:
  $python $here/play.py --model_folder $model
  $python $here/play.py --model_folder $out/world_model_run --vae_ft_model_folder $out/decoder
A few minutes change little. For more:
  bash demo.sh --model_folder $model --out $out --minutes 60
                                         goes on from here
  bash demo.sh --from_scratch            an agent, an autoencoder and a world model from nothing
TEXT
}

start_from_scratch() {
    local first play_minutes autoencoder world_model decoder
    # What must not change on a later run with more minutes is kept from the first one.
    first=$(cat "$out/first_minutes")
    play_minutes=$(share "$first" 0.14)
    autoencoder=$(share "$first" 0.29)
    world_model=$(share "$minutes" 0.45)
    decoder=$(share "$minutes" 0.12)

    stage 2 "an agent learns deathmatch on our own map; all its play is recorded" "$play_minutes minutes"
    show_and_run "$python" "$here/ViZDoomPPO/train_ppo_and_collect_data_parallel.py" --out_base_dir "$out/episodes" --resume \
        --screen_resolution RES_160X120 --record_depth --n_train_envs 2 --n_eval_envs 1 --n_steps 256 --n_epochs 2 --episode_tics 1050 \
        --eval_episodes 2 --max_train_minutes "$play_minutes" --device "$device"

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
    roll_out "$out/world_model_run" "$out/decoder" "$out/rollouts"
    cat <<TEXT

Done. Look at $out/rollouts/rollout_0.gif: the real game is on the left, the dream on the right. On held-out play:
$(figures)
A first try this short on a CPU gives a recognisable blur: the colours of the rooms, gun and status bar, not yet a game.
Play it:
  $python $here/play.py --model_folder $out/world_model_run --vae_ft_model_folder $out/decoder
For a better one:
  bash demo.sh --from_scratch --out $out --minutes 60                   goes on from here
  sh train_diffusion_scripts/small.sh $out/episodes runs/small          the whole recipe, for a GPU or a patient CPU
TEXT
}

case "$way" in shipped) go_on_from_shipped ;; scratch) start_from_scratch ;; esac
if [ "$play" = yes ]; then
    show_and_run "$python" "$here/play.py" --model_folder "$out/world_model_run" --vae_ft_model_folder "$out/decoder" \
        --port "$port" --device "$device"
fi
