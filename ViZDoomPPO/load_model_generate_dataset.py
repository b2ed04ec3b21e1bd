"""Stage 1: reads a policy (or plays at random), writes episodes as parquet files or gifs.

Every episode is a fresh game seeded from (--seed, --split, episode number), so a repeated run gives the same files,
whatever the number of workers; episodes already there are kept. Parquet goes to
<output_dir>/<split>/level_<k>/<policy>/episode_<n>.parquet, gifs to <output_dir>/episode_<n>.gif. Plays Doom, or with
--env any gymnasium env that has Discrete actions and an RGB picture. With --upload all episodes of --output_dir then go
to the Hugging Face Hub as a data set.

  python load_model_generate_dataset.py --episodes 1 --output gif --policy random --episode_tics 350
  python load_model_generate_dataset.py --episodes 100 --output parquet --output_dir dataset
  python load_model_generate_dataset.py --episodes 100 --output parquet --output_dir dataset --upload --hf_repo doom
"""

import argparse
import importlib.util
import os
import shutil
import signal
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from console import BadInput, add_device_flag, check_writable, parser, print_settings, resolve_device, run
from hub_repository import HUB_ID, fetch_policy, open_repository, upload, uploaded_files
from recording import (
    BUILT_IN,
    DEFAULT_POLICY,
    EXPLORE,
    SPLITS,
    RecorderDied,
    Recording,
    check_game,
    gif_workplace,
    make_recording,
)


def build_parser() -> argparse.ArgumentParser:
    arguments = parser(__doc__)
    add = arguments.add_argument
    add(
        "--episodes", type=int, default=1, help="how many episodes there shall be in the end; 0: --upload what is there"
    )
    add("--output", choices=("parquet", "gif"), default="parquet", help="data to train on, or pictures to look at")
    add("--output_dir", type=Path, default=Path("dataset"), help="folder to write to; made if missing")
    add(
        "--policy",
        default=str(DEFAULT_POLICY),
        help="policy file (.zip) or its Hub id, `random`, or `explore`: what a person tries out and no agent does",
    )
    add("--env", help="id of a gymnasium env to play instead of Doom, `module:id` to import its module first")
    add("--scenario", help="Doom scenario as in training; default: the policy's own")
    add(
        "--action_set",
        choices=("full", "seed"),
        help="Doom buttons, for `random` and `explore`; default: the policy's own, else full",
    )
    add("--level", type=int, default=5, help="how able the Doom bots are, 0 to 5")
    add("--bots", type=int, default=8, help="Doom opponents")
    add("--episode_tics", type=int, default=5250, help="longest episode in game tics (Doom: 35 a second) or env steps")
    add("--screen_resolution", default="RES_320X240", help="size of the recorded Doom frames, a ViZDoom name")
    add("--image_format", choices=("jpeg", "png"), default="jpeg", help="how frames are stored")
    add("--image_quality", type=int, default=90, help="JPEG quality, 1 to 95")
    add("--record_stride", type=int, default=1, help="record every n-th tic; divides the 4 tics of an agent step")
    add("--record_depth", action="store_true", help="record Doom's depth and the eye's height, for stage 3")
    add("--split", choices=SPLITS, default="train", help="eval episodes serve validation; their games differ")
    add("--seed", type=int, default=0, help="of the games and of the actions drawn")
    add("--num_workers", type=int, help="games played at once, a process each; default: as many as there are cores")
    add(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="record over the Ray cluster at ADDRESS, `auto`: the one of this machine; no ADDRESS: RAY_ADDRESS, or "
        "one of its own; files come back here, recorders play on CPUs",
    )
    add("--upload", action="store_true", help="upload all episodes of --output_dir with a card to the Hugging Face Hub")
    add("--hf_repo", metavar="[OWNER/]NAME", help="data set to upload to; made where there is none")
    add("--hub_public", action="store_true", help="let everybody see it; without this flag it is private")
    add_device_flag(arguments)
    return arguments


def check_flags(args: argparse.Namespace) -> None:
    """Raises BadInput for what cannot be played, before anything heavy is imported."""
    check_upload_flags(args)
    least = {
        "episodes": 0 if args.upload else 1,
        "level": 0,
        "bots": 0,
        "episode_tics": 1,
        "image_quality": 1,
        "record_stride": 1,
        "seed": 0,
    }
    for name, value in {**least, **({} if args.num_workers is None else {"num_workers": 1})}.items():
        if getattr(args, name) < value:
            raise BadInput(f"--{name} {getattr(args, name)} is too small; give {value} or more")
    for name, value in {"level": 5, "image_quality": 95}.items():
        if getattr(args, name) > value:
            raise BadInput(f"--{name} {getattr(args, name)} is too large; give {value} or less")
    check_writable(args.output_dir.resolve())
    if args.episodes == 0:
        return  # nothing is played
    if args.ray is not None and importlib.util.find_spec("ray") is None:
        raise BadInput("--ray needs Ray; run: pip install -r ViZDoomPPO/ray_requirements.txt, here and on every node")
    if args.ray is not None and args.device not in ("auto", "cpu"):
        raise BadInput(f"--device {args.device} with --ray: recorders in a cluster play on CPUs; leave out --device")
    if args.record_depth and (args.env or args.output == "gif"):
        other = f"--env {args.env}" if args.env else "--output gif"
        raise BadInput(f"--record_depth: only episodes of Doom have a depth, not {other}; leave it out")
    if args.policy == EXPLORE and args.env:
        raise BadInput(f"--policy explore knows Doom's buttons, --env {args.env} has others; use --policy random")
    is_file = args.policy in BUILT_IN or Path(args.policy).exists()
    if not is_file and HUB_ID.fullmatch(args.policy) and not Path(args.policy).parent.exists():
        args.policy = str(fetch_policy(args.policy))
    if args.policy not in BUILT_IN and not Path(args.policy).is_file():
        raise BadInput(
            f"no policy {args.policy}; train one with train_ppo_and_collect_data_parallel.py and give its "
            "policy/best_model.zip, name one on the Hub as owner/name, or play with --policy random"
        )


def check_upload_flags(args: argparse.Namespace) -> None:
    """Raises BadInput for flags that do not go together, without asking the Hub."""
    if args.upload and not args.hf_repo:
        raise BadInput("--upload: where to? add --hf_repo NAME, or OWNER/NAME")
    if not args.upload and (args.hf_repo or args.hub_public):
        flag = "--hf_repo" if args.hf_repo else "--hub_public"
        raise BadInput(f"{flag}: nothing is uploaded without --upload; add it, or leave this out")
    if args.upload and args.output == "gif":
        raise BadInput("--upload: a data set is made of parquet files; use --output parquet")


def record(args: argparse.Namespace, recording: Recording, device: str, wanted: list[int], folder: Path) -> None:
    """Records the wanted episodes into `folder`, on this machine or, with --ray, over a cluster."""
    from recorder_processes import record_all
    from tqdm import tqdm

    with ExitStack() as stack:
        if args.ray is not None and wanted:
            from ray_recording import cluster, cores, record_on_cluster

            shipped = stack.enter_context(cluster(args.ray, recording))
            print_settings(args, **asdict(recording), device=device, num_workers=args.num_workers or cores())
            bar = stack.enter_context(tqdm(total=len(wanted), unit="episode"))
            record_on_cluster(args.output, shipped, folder, wanted, args.num_workers, bar)
        else:
            workers = max(1, min(args.num_workers or os.cpu_count() or 1, len(wanted)))
            print_settings(args, **asdict(recording), device=device, num_workers=workers)
            bar = stack.enter_context(tqdm(total=len(wanted), unit="episode"))
            record_all(args.output, recording, args.output_dir, device, wanted, workers, bar)


def checked_recording(args: argparse.Namespace) -> tuple[Recording, str]:
    """(what is recorded, the policy's device). Raises BadInput when it cannot be; writes nothing."""
    recording = make_recording(args)
    device = "none" if recording.policy in BUILT_IN else resolve_device("cpu" if args.ray is not None else args.device)
    check_game(recording, device)
    return recording, device


def open_data_set(args: argparse.Namespace) -> str:
    """The id of the data set to upload to, made where there was none. Raises BadInput for what would stop it."""
    from data_card import check_card, check_content

    check_card(args.output_dir)
    repo_id = open_repository(args.hf_repo, flag="--hf_repo", repo_type="dataset", is_public=args.hub_public)
    check_content(args.output_dir, repo_id, uploaded_files(repo_id, "dataset"), is_complete=False)
    return repo_id


def upload_episodes(args: argparse.Namespace, repo_id: str) -> None:
    """Writes the card and uploads it with every episode of --output_dir.

    Raises BadInput when that fails: everything is kept, and the same command tries again."""
    from data_card import check_content, content_patterns, write_card

    episodes = write_card(args.output_dir, repo_id).episodes
    try:
        check_content(args.output_dir, repo_id, uploaded_files(repo_id, "dataset"), is_complete=True)
        patterns, what = content_patterns(args.output_dir), f"Upload {episodes} episodes"
        address = upload(args.output_dir, repo_id, repo_type="dataset", message=what, allow_patterns=patterns)
    except BadInput as error:
        raise BadInput(f"{error}; {args.output_dir} is kept, the same command again uploads it") from None
    visible = "public" if args.hub_public else "private"
    following = f"next: python encode_images.py --dataset_basepath {repo_id}"
    print(f"uploaded {args.output_dir}, {episodes} episodes, to {address} ({visible}); {following}")


def main(args: argparse.Namespace) -> None:
    check_flags(args)
    args.output_dir = args.output_dir.resolve()
    planned = checked_recording(args) if args.episodes > 0 else None
    repo_id = open_data_set(args) if args.upload else None
    if planned:
        record_episodes(args, *planned)
    if repo_id:
        upload_episodes(args, repo_id)


def record_episodes(args: argparse.Namespace, recording: Recording, device: str) -> None:
    """Records what is missing of --episodes."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: nothing half written
    output_dir = args.output_dir
    from episode_recorder import claimed_folder, episode_file

    is_gif = args.output == "gif"
    folder, suffix = (output_dir, ".gif") if is_gif else (recording.folder(output_dir), ".parquet")
    with claimed_folder(
        folder,
        recording.identity(),
        episodes=f"episode_*{suffix}",
        partials=f".episode_*.partial{suffix}",
        cure="choose another --output_dir, or repeat the flags it was recorded with",
    ):
        wanted = [n for n in range(args.episodes) if not (folder / episode_file(n, suffix)).exists()]
        try:
            record(args, recording, device, wanted, folder)
        except RecorderDied as error:
            sys.exit(f"{Path(sys.argv[0]).name}: {error}; run the same command again to go on")
        finally:
            if is_gif:
                shutil.rmtree(gif_workplace(output_dir), ignore_errors=True)
        megabytes = sum((folder / episode_file(n, suffix)).stat().st_size for n in range(args.episodes)) / 1e6
    following = "look at them" if is_gif else f"next: python encode_images.py --dataset_basepath {output_dir}"
    already = f" ({args.episodes - len(wanted)} were there already)" if len(wanted) < args.episodes else ""
    print(f"{args.episodes} episodes{already}, {megabytes:.1f} MB, in {folder}; {following}")


if __name__ == "__main__":
    run(main, build_parser())
