"""Stage 1: reads a policy (or plays at random), writes episodes as parquet files or gifs.

Every episode is a fresh game seeded from (--seed, --split, episode number), so a repeated run gives the same files,
whatever the number of workers; episodes already there are kept. Parquet goes to
<output_dir>/<split>/level_<k>/<policy>/episode_<n>.parquet, gifs to <output_dir>/episode_<n>.gif. Plays Doom, or with
--env any gymnasium env that has Discrete actions and an RGB picture.

  python load_model_generate_dataset.py --episodes 1 --output gif --policy random --episode_tics 350
  python load_model_generate_dataset.py --episodes 100 --output parquet --output_dir dataset
"""

import argparse
import functools
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TYPE_CHECKING, Any

from console import BadInput, add_device_flag, parser, print_settings, resolve_device, run

if TYPE_CHECKING:
    import gymnasium
    from PIL import Image
    from stable_baselines3 import PPO

DEFAULT_POLICY = Path(__file__).resolve().parent / "logs" / "models" / "deathmatch_simple" / "best_model.zip"
DEFAULT_SCENARIO = "deathmatch_simple"
RANDOM = "random"
SPLITS = ("train", "eval")
GIF_MIN_HEIGHT_PX = 240  # smaller games are shown enlarged
GIF_CAPTION_PX = 14


def build_parser() -> argparse.ArgumentParser:
    arguments = parser(__doc__)
    add = arguments.add_argument
    add("--episodes", type=int, default=1, help="how many episodes there shall be in the end")
    add("--output", choices=("parquet", "gif"), default="parquet", help="data to train on, or pictures to look at")
    add("--output_dir", type=Path, default=Path("dataset"), help="folder to write to; made if missing")
    add("--policy", default=str(DEFAULT_POLICY), help="policy file (.zip), or `random`")
    add("--env", help="id of a gymnasium env to play instead of Doom, `module:id` to import its module first")
    add("--scenario", help="Doom scenario as in training; default: the policy's own")
    add(
        "--action_set",
        choices=("full", "seed"),
        help="Doom buttons, for `random`; default: the policy's own, else full",
    )
    add("--level", type=int, default=5, help="how able the Doom bots are, 0 to 5")
    add("--bots", type=int, default=8, help="Doom opponents")
    add("--episode_tics", type=int, default=5250, help="longest episode in game tics (Doom: 35 a second) or env steps")
    add("--screen_resolution", default="RES_320X240", help="size of the recorded Doom frames, a ViZDoom name")
    add("--image_format", choices=("jpeg", "png"), default="jpeg", help="how frames are stored")
    add("--image_quality", type=int, default=90, help="JPEG quality, 1 to 95")
    add("--record_stride", type=int, default=1, help="record every n-th tic; divides the 4 tics of an agent step")
    add("--split", choices=SPLITS, default="train", help="eval episodes serve validation; their games differ")
    add("--seed", type=int, default=0, help="of the games and of the actions drawn")
    add("--num_workers", type=int, default=os.cpu_count() or 1, help="games played at once, a process each")
    add_device_flag(arguments)
    return arguments


def check_flags(args: argparse.Namespace) -> None:
    """Raises BadInput for what cannot be played, before anything heavy is imported."""
    least = {"episodes": 1, "level": 0, "bots": 0, "episode_tics": 1, "image_quality": 1, "record_stride": 1, "seed": 0}
    for name, value in {**least, "num_workers": 1}.items():
        if getattr(args, name) < value:
            raise BadInput(f"--{name} {getattr(args, name)} is too small; give {value} or more")
    for name, value in {"level": 5, "image_quality": 95}.items():
        if getattr(args, name) > value:
            raise BadInput(f"--{name} {getattr(args, name)} is too large; give {value} or less")
    if args.policy != RANDOM and not Path(args.policy).is_file():
        raise BadInput(
            f"no policy {args.policy}; train one with train_ppo_and_collect_data_parallel.py and give its "
            "policy/best_model.zip, or play with --policy random"
        )


@dataclass(frozen=True)
class Recording:
    """What all episodes of one recording share: everything that decides what is in the files."""

    policy: str
    policy_sha256: str | None
    env: str | None
    scenario: str
    action_set: str
    level: int
    bots: int
    episode_tics: int
    screen_resolution: str
    image_format: str
    image_quality: int
    record_stride: int
    split: str
    seed: int

    def open_game(self) -> "gymnasium.Env":
        """The game, not yet begun."""
        if self.env:
            return open_gymnasium(self.env, self.episode_tics)
        from doom_env import DoomEnv

        names = ("scenario", "level", "bots", "episode_tics", "screen_resolution", "action_set", "seed")
        return DoomEnv(**{name: getattr(self, name) for name in names})

    def policy_name(self) -> str:
        return RANDOM if self.policy == RANDOM else Path(self.policy).stem

    def folder(self, output_dir: Path) -> Path:
        """Where the parquet files go, under `output_dir`."""
        return output_dir / self.split / f"level_{0 if self.env else self.level}" / self.policy_name()

    def identity(self) -> dict[str, Any]:
        """What a repeated run must share to go on here; where the policy file lies does not matter."""
        return {"recorded_by": "generation", **asdict(self), "policy": self.policy_name()}


def open_gymnasium(env_id: str, max_steps: int) -> "gymnasium.Env":
    """A gymnasium env that draws RGB pictures and ends after `max_steps`. Raises BadInput when there is none."""
    import gymnasium

    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # where one's own `module:id` lies
    try:
        env = gymnasium.make(env_id, render_mode="rgb_array")
    except (gymnasium.error.Error, ImportError) as error:
        raise BadInput(f"--env {env_id} cannot be made ({error}); install it, or give `module:id`") from error
    return gymnasium.wrappers.TimeLimit(env, max_steps)


def make_recording(args: argparse.Namespace) -> Recording:
    """Settles what the flags leave open: scenario and buttons come from the policy file where it says them."""
    taken = {name: value for name, value in vars(args).items() if name in Recording.__dataclass_fields__}
    facts: dict[str, Any] = {}
    digest = None
    if args.policy != RANDOM:
        from policy import FACTS_MEMBER, read_member

        facts = read_member(Path(args.policy), FACTS_MEMBER) or {}
        digest = hashlib.sha256(Path(args.policy).read_bytes()).hexdigest()
    taken["scenario"] = args.scenario or facts.get("scenario") or DEFAULT_SCENARIO
    taken["action_set"] = args.action_set or facts.get("action_set") or "full"
    recording = Recording(**taken, policy_sha256=digest)
    if args.policy != RANDOM and not (facts or args.env or args.action_set):
        from policy import count_actions

        # Files without our facts, such as the seed's: the number of actions tells which of our tables it is.
        smaller = Recording(**{**taken, "action_set": "seed"}, policy_sha256=digest)
        if smaller.open_game().action_space.n == count_actions(Path(args.policy)):
            return smaller
    return recording


def check_game(recording: Recording, device: str) -> None:
    """Raises BadInput, before anything is written, when the game cannot be recorded or the policy plays another one."""
    from actions import table_rows
    from episode_recorder import EpisodeRecorder, gymnasium_actions

    game = recording.open_game()
    recorder = EpisodeRecorder(game, Path(), record_stride=recording.record_stride, episode=0)  # checks; writes nothing
    if recording.env:
        recorder.reset(seed=recording.seed)  # draws the first picture; no file before the first step
    if recording.policy != RANDOM:
        from policy import FACTS_MEMBER, read_member

        table = table_rows(gymnasium_actions(game) if recording.env else game.actions)
        known = (read_member(Path(recording.policy), FACTS_MEMBER) or {}).get("action_table", table)
        if known != table:
            raise BadInput(
                f"{recording.policy} was trained with {len(known)} other actions than the {len(table)} of this game; "
                "leave out --scenario, --action_set and --env, or give the policy of this game"
            )
        loaded_policy(recording, device)
    recorder.close()


@functools.lru_cache(maxsize=1)
def loaded_policy(recording: Recording, device: str) -> "PPO":
    """The recording's policy, loaded once per process."""
    import torch
    from policy import load_policy

    torch.set_num_threads(1)  # one picture at a time, so no faster with more; and the same sums on every machine
    game = recording.open_game()
    game.close()
    return load_policy(Path(recording.policy), game.observation_space, game.action_space, device)


def chooser(recording: Recording, action_space: Any, game_seed: int, device: str) -> Callable[[Any], int]:
    """observation -> action id: drawn evenly, or from the policy's probabilities; the same for the same `game_seed`."""
    if recording.policy == RANDOM:
        action_space.seed(game_seed)
        return lambda _observation: int(action_space.sample())
    import torch

    model = loaded_policy(recording, device)
    torch.manual_seed(game_seed)
    return lambda observation: int(model.predict(observation, deterministic=False)[0])


_interrupted: Event | None = None  # set in a worker by `start_worker`


def start_worker(interrupted: Event) -> None:
    """Prepares a worker: it obeys the main process alone, and ends with it."""
    global _interrupted
    _interrupted = interrupted
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()
        interrupted.set()  # lets the running episode close its game, which would outlive this process
        threading.Event().wait(5)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def record_episode(recording: Recording, output_dir: Path, device: str, episode: int) -> Path:
    """Plays one episode from its seed and writes its parquet file; interrupted, it leaves nothing."""
    from episode_recorder import EpisodeRecorder, derived_seed, episode_file

    game_seed = derived_seed(recording.seed, SPLITS.index(recording.split), episode)
    env = EpisodeRecorder(
        recording.open_game(),
        output_dir / recording.split,
        recording.policy_name(),
        image_format=recording.image_format,
        image_quality=recording.image_quality,
        record_stride=recording.record_stride,
        seed=recording.seed,
        episode=episode,
    )
    try:
        choose = chooser(recording, env.action_space, game_seed, device)
        observation, _ = env.reset(seed=game_seed)
        is_over = False
        while not is_over:
            if _interrupted is not None and _interrupted.is_set():
                raise KeyboardInterrupt
            observation, _, terminated, truncated, _ = env.step(choose(observation))
            is_over = terminated or truncated
    except BaseException:
        env.discard()
        raise
    finally:
        env.close()
    return recording.folder(output_dir) / episode_file(episode)


def record_gif(recording: Recording, output_dir: Path, device: str, episode: int) -> Path:
    """Like `record_episode`, but keeps only a gif of what was recorded."""
    from episode_recorder import episode_file, partial_path

    parquet = record_episode(recording, gif_workplace(output_dir), device, episode)
    gif = output_dir / episode_file(episode, ".gif")
    write_gif(parquet, partial_path(gif))
    os.replace(partial_path(gif), gif)
    parquet.unlink()
    return gif


def gif_workplace(output_dir: Path) -> Path:
    return output_dir / ".gif_recording"


def write_gif(parquet: Path, gif: Path) -> None:
    """One picture per agent step, at the game's own speed, with step and action below it."""
    import pyarrow.parquet as pq
    from episode_recorder import METADATA_KEY

    with pq.ParquetFile(parquet) as file:
        facts = json.loads(file.metadata.metadata[METADATA_KEY])
        pictures = captioned_pictures(file, [row["name"] for row in facts["action_table"]])
        step_ms = round(1000 * facts["tics_per_step"] / facts["tics_per_second"])
        next(pictures).save(gif, save_all=True, append_images=pictures, duration=step_ms, loop=0)


def captioned_pictures(file: Any, action_names: list[str]) -> Iterator["Image.Image"]:
    """The first frame of every agent step of an open parquet file, enlarged where it is small."""
    from PIL import Image, ImageDraw

    last_step = -1
    for batch in file.iter_batches(columns=["frames", "actions", "step_ids"]):
        for frame, action, step in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if step == last_step:
                continue
            last_step = step
            picture = Image.open(io.BytesIO(frame)).convert("RGB")
            scale = -(-GIF_MIN_HEIGHT_PX // picture.height)  # whole pixels, rounded up
            picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
            canvas = Image.new("RGB", (picture.width, picture.height + GIF_CAPTION_PX))
            canvas.paste(picture)
            ImageDraw.Draw(canvas).text((2, picture.height + 1), f"{step:04d} {action_names[action]}", fill="white")
            yield canvas


def record_all(
    record: Callable[..., Path], recording: Recording, output_dir: Path, device: str, wanted: list[int], workers: int
) -> None:
    """Records the wanted episodes, `workers` at a time, with a progress bar."""
    from tqdm import tqdm

    with tqdm(total=len(wanted), unit="episode") as bar:
        if workers == 1:
            for episode in wanted:
                record(recording, output_dir, device, episode)
                bar.update()
            return
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context = multiprocessing.get_context(method)
        if recording.policy != RANDOM and method == "forkserver":
            context.set_forkserver_preload(["stable_baselines3"])  # imported once for all workers
        interrupted = context.Event()
        with ProcessPoolExecutor(workers, context, start_worker, (interrupted,)) as pool:
            jobs = [pool.submit(record, recording, output_dir, device, episode) for episode in wanted]
            try:
                for job in as_completed(jobs):
                    job.result()
                    bar.update()
            except BaseException:
                interrupted.set()
                pool.shutdown(cancel_futures=True)
                raise


def main(args: argparse.Namespace) -> None:
    check_flags(args)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: nothing half written
    output_dir = args.output_dir.resolve()
    recording = make_recording(args)
    device = "none" if recording.policy == RANDOM else resolve_device(args.device)
    check_game(recording, device)

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
        workers = max(1, min(args.num_workers, len(wanted)))
        print_settings(args, **asdict(recording), device=device, num_workers=workers)
        try:
            record_all(record_gif if is_gif else record_episode, recording, output_dir, device, wanted, workers)
        except BrokenProcessPool:
            sys.exit(f"{Path(sys.argv[0]).name}: a worker process died; run the same command again to go on")
        finally:
            if is_gif:
                shutil.rmtree(gif_workplace(output_dir), ignore_errors=True)
        megabytes = sum((folder / episode_file(n, suffix)).stat().st_size for n in range(args.episodes)) / 1e6
    following = "look at them" if is_gif else f"next: python encode_images.py --dataset_basepath {output_dir}"
    already = f" ({args.episodes - len(wanted)} were there already)" if len(wanted) < args.episodes else ""
    print(f"{args.episodes} episodes{already}, {megabytes:.1f} MB, in {folder}; {following}")


if __name__ == "__main__":
    run(main, build_parser())
