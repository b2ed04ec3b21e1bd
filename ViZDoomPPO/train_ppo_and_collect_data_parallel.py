"""Stage 1: reads a Doom scenario, writes a policy and every episode of the agent's training and evaluation.

PPO learns deathmatch against bots that get better as it does; all its play, from the untrained policy on, is recorded
as <out_base_dir>/{train,eval}/level_<k>/env_<i>/episode_<n>.parquet. <out_base_dir>/policy holds best_model.zip,
last_model.zip (the checkpoint), metrics.jsonl, evaluations.json and TensorBoard events. Ctrl-C saves and stops; the
same command with --resume goes on, also after a kill.

  python train_ppo_and_collect_data_parallel.py --out_base_dir dataset --screen_resolution RES_160X120 \\
      --n_train_envs 2 --n_steps 512 --max_train_minutes 5
  python train_ppo_and_collect_data_parallel.py --out_base_dir dataset
"""

import argparse
import json
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from console import (
    BadInput,
    add_device_flag,
    add_preset,
    check_writable,
    parser,
    print_settings,
    resolve_device,
    run,
    writing,
)
from hub_repository import add_hub_flags, check_hub_flags, open_repository
from progress import (
    LEVEL_THRESHOLDS,
    Progress,
    add_line,
    best_rank,
    forget_lines_after,
    rank,
    saved_progress,
    whole_checkpoint,
)
from rewards import REWARDS
from training_games import AGENT_FLAGS, GAME_FLAGS, RECORDING_FLAGS, STOP_SIGNALS, open_envs

CHECKPOINT_NAME, PREVIOUS_NAME, BEST_NAME = "last_model.zip", "previous_model.zip", "best_model.zip"
METRICS_NAME = "metrics.jsonl"
PPO_FLAGS = ("n_train_envs", "n_steps", "batch_size", "n_epochs", "learning_rate", "gamma", "gae_lambda")
PPO_FLAGS += ("ent_coef", "clip_range", "seed")
PAPER = {  # GameNGen 4.1 and A.5
    "reward": "paper",
    "observe_map": True,
    "action_history": 32,
    "repeat_probability": 0.25,  # the paper raises it, not saying by how much
    "n_train_envs": 8,
    "n_steps": 512,
    "batch_size": 64,
    "n_epochs": 10,
    "learning_rate": 1e-4,
    "gamma": 0.99,
    "ent_coef": 0.1,
    "total_timesteps": 50_000_000,
}


def build_parser() -> argparse.ArgumentParser:
    arguments = parser(__doc__)
    add = arguments.add_argument
    add("--out_base_dir", type=Path, required=True, help="folder for the episodes; made if missing")
    add("--run_dir", type=Path, help="folder for policies, logs and TensorBoard events; default: <out_base_dir>/policy")
    add_preset(arguments, "--paper", "GameNGen's agent: its reward, what it sees, its PPO settings as defaults", PAPER)
    add("--resume", action="store_true", help="go on with the run in --out_base_dir; begins one where there is none")
    add("--scenario", default="deathmatch_simple", help="our scenario, one inside the vizdoom package, or a .cfg file")
    add("--action_set", choices=("full", "seed"), default="full", help="all combinations of buttons, or the seed's 12")
    add("--reward", choices=tuple(REWARDS), default=AGENT_FLAGS["reward"], help="rl-doom's, ours, or GameNGen's A.5")
    map_flag = {"action": argparse.BooleanOptionalAction, "default": AGENT_FLAGS["observe_map"]}
    add("--observe_map", **map_flag, help="let the agent see the automap beside the screen, 160x120 each")
    add("--action_history", type=int, default=AGENT_FLAGS["action_history"], help="how many last actions it knows")
    add("--observation_shrink", type=int, default=1, choices=(1, 2), help="2: half as high and wide, 7 times as fast")
    add("--repeat_probability", type=float, default=0.0, help="of the last action, beside what the policy gives it")
    add("--bots", type=int, default=6, help="opponents")
    add("--start_level", type=int, default=0, choices=range(6), help="how able the bots are at first")
    returns_help = "mean returns, in kills, that lead from level 0 to 1, 1 to 2 ... 4 to 5"
    add("--level_returns", type=float, nargs=5, default=LEVEL_THRESHOLDS, metavar="RETURN", help=returns_help)
    add("--episode_tics", type=int, default=5250, help="length of an episode in game tics, 35 a second")
    add("--screen_resolution", default="RES_320X240", help="size of the recorded frames, a ViZDoom name")
    add("--image_format", choices=("jpeg", "png"), default="jpeg", help="how frames are stored")
    add("--image_quality", type=int, default=90, help="JPEG quality, 1 to 95")
    add("--record_stride", type=int, default=1, help="record every n-th tic; divides the 4 tics of an agent step")
    add("--record_depth", action="store_true", help="record Doom's depth and the eye's height, for stage 3")
    add("--n_train_envs", type=int, default=4, help="games to learn from, a process each")
    add("--n_eval_envs", type=int, default=1, help="games to evaluate with, a process each; 1 and 1: all in one")
    add("--eval_freq", type=int, default=50_000, help="agent steps, over all games, between evaluations")
    add("--eval_episodes", type=int, default=4, help="episodes of one evaluation")
    add("--total_timesteps", type=int, default=50_000_000, help="agent steps of 4 tics, all games; ends with a rollout")
    add("--max_train_minutes", type=float, help="stop after this long, resumes added up; a last evaluation follows")
    add("--n_steps", type=int, default=2048, help="agent steps per game between two updates of the policy")
    add("--batch_size", type=int, default=64, help="agent steps per gradient step")
    add("--n_epochs", type=int, default=10, help="passes over the collected steps per update")
    add("--learning_rate", type=float, default=1e-4, help="Adam's step size")
    add("--gamma", type=float, default=0.99, help="what a reward one agent step later is worth, 0 to 1")
    add("--gae_lambda", type=float, default=0.95, help="weight of longer advantage estimates, 0 to 1")
    add("--ent_coef", type=float, default=0.0, help="weight of the policy's entropy in the loss")
    add("--clip_range", type=float, default=0.2, help="how far an update may move an action's probability, as a share")
    add("--seed", type=int, default=0, help="of the games and the policy")
    add_hub_flags(arguments)
    add_device_flag(arguments)
    return arguments


def check_flags(args: argparse.Namespace) -> None:
    """Raises BadInput for numbers nothing can be done with, before anything heavy is imported."""
    check_hub_flags(args)
    least = {"n_train_envs": 1, "n_eval_envs": 1, "eval_episodes": 1, "eval_freq": 1, "total_timesteps": 1, "bots": 0}
    least |= {"n_steps": 2, "batch_size": 2, "n_epochs": 1, "episode_tics": 1, "record_stride": 1, "seed": 0}
    least |= {"image_quality": 1, "action_history": 0}
    for name, value in least.items():
        if getattr(args, name) < value:
            raise BadInput(f"--{name} {getattr(args, name)} is too small; give {value} or more")
    if args.image_quality > 95:
        raise BadInput(f"--image_quality {args.image_quality} is too large; give 95 or less, or --image_format png")
    for name in ("learning_rate", "clip_range"):
        if not getattr(args, name) > 0:
            raise BadInput(f"--{name} {getattr(args, name)} does not learn; give a positive number")
    for name in ("gamma", "gae_lambda"):
        if not 0 <= getattr(args, name) <= 1:
            raise BadInput(f"--{name} {getattr(args, name)} is out of range; give 0 to 1")
    if not args.ent_coef >= 0:
        raise BadInput(f"--ent_coef {args.ent_coef} would reward certainty; give 0 or more")
    if not 0 <= args.repeat_probability < 1:
        raise BadInput(f"--repeat_probability {args.repeat_probability} is out of range; give 0 or more, less than 1")
    if args.repeat_probability and not args.action_history:
        raise BadInput(
            f"--repeat_probability {args.repeat_probability} repeats what the policy cannot see; add --action_history 1"
        )
    if args.max_train_minutes is not None and args.max_train_minutes <= 0:
        raise BadInput(f"--max_train_minutes {args.max_train_minutes} is no time; give a positive number of minutes")


class Stopper:
    """Turns the first SIGINT or SIGTERM into a request to save and stop; the second one acts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: object) -> None:
        self.signal = number
        print("\nstopping: saving the policy and the episodes begun; once more to stop without", file=sys.stderr)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Stopped(Exception):
    """Leaves an evaluation that a signal interrupts."""


def presses(action_table: list[dict]) -> list[list[int]]:
    """Which buttons (columns) each action (rows) presses, 0 or 1."""
    buttons = sorted({button for action in action_table for button in action["buttons"]})
    return [[int(button in action["buttons"]) for button in buttons] for action in action_table]


class Training:
    """One process's share of a run: model, games and progress, and the steps of the loop in `train`."""

    def __init__(self, args: argparse.Namespace, device: str, progress: Progress, facts: dict) -> None:
        from episode_recorder import derived_seed
        from policy import GamePPO, architecture, restore_training
        from stable_baselines3.common.logger import configure
        from tqdm import tqdm

        self.args, self.progress, self.facts = args, progress, facts
        # Where no bots play, there are no levels to pass.
        self.thresholds = tuple(
            kills * REWARDS[args.reward].kill_points for kills in args.level_returns if facts["has_bots"]
        )
        self.places: list[tuple[int, int]] = []  # (areas, secrets) of the episodes that ended in this rollout
        # A resumed run begins new games: seeded by where it resumes, or it would repeat those before.
        train_seed, eval_seed = (derived_seed(args.seed, progress.agent_steps, split) for split in range(2))
        in_processes = max(args.n_train_envs, args.n_eval_envs) > 1
        self.envs = open_envs(args, "train", args.n_train_envs, progress, train_seed, in_processes)
        self.eval_envs = open_envs(args, "eval", args.n_eval_envs, progress, eval_seed, in_processes)
        self.model = GamePPO(
            env=self.envs,
            learning_rate=args.learning_rate,
            n_steps=args.n_steps,
            batch_size=args.batch_size,
            n_epochs=args.n_epochs,
            gamma=args.gamma,
            gae_lambda=args.gae_lambda,
            ent_coef=args.ent_coef,
            clip_range=args.clip_range,
            seed=train_seed,
            device=device,
            **architecture(self.envs.observation_space, args.repeat_probability, presses(facts["action_table"])),
        )
        if self.checkpoint.exists():
            restore_training(self.checkpoint, self.model)
        forget_lines_after(args.run_dir / METRICS_NAME, progress.agent_steps)
        self.model.num_timesteps, self.model._n_updates = progress.agent_steps, progress.updates
        self.model.set_logger(configure(str(args.run_dir / "tensorboard"), ["tensorboard"]))
        self.stopper = Stopper()
        often_s = 1 if sys.stderr.isatty() else 30
        if args.max_train_minutes is None:
            bar = {"total": args.total_timesteps, "initial": progress.agent_steps, "unit": "step"}
        else:  # the bar, and so its time left, counts the seconds of the run
            bar = {"total": args.max_train_minutes * 60, "initial": progress.train_seconds}
            bar["bar_format"] = "{l_bar}{bar}| {elapsed}<{remaining}"
        self.bar = tqdm(**bar, mininterval=often_s)
        self.began_s = time.monotonic() - progress.train_seconds

    @property
    def checkpoint(self) -> Path:
        return self.args.run_dir / CHECKPOINT_NAME

    def is_interrupted(self) -> bool:
        """Whether to stop at once, even within a rollout: when told to, or out of time."""
        self.progress.train_seconds = time.monotonic() - self.began_s
        return self.stopper.signal is not None or self.progress.is_late(self.args)

    def is_over(self) -> bool:
        return self.is_interrupted() or self.progress.is_finished(self.args)

    def learn(self) -> None:
        """One rollout in every game, then one update of the policy; cut short by a signal or the end of the time."""
        from policy import finite

        began_s, began_steps = time.monotonic(), self.progress.agent_steps
        self.places = []
        rollout_steps = self.args.n_steps * self.envs.num_envs
        with finite(self.model):
            self.model.learn(rollout_steps, callback=self._after_step, reset_num_timesteps=False)
        self.progress.updates = self.model._n_updates
        self._log((self.progress.agent_steps - began_steps) / (time.monotonic() - began_s))

    def _after_step(self, played: dict[str, Any], _globals: dict[str, Any]) -> bool:
        self.progress.agent_steps = self.model.num_timesteps
        is_timed = self.args.max_train_minutes is not None
        elapsed_s = time.monotonic() - self.began_s
        self.bar.update(min(elapsed_s, self.bar.total) - self.bar.n if is_timed else self.envs.num_envs)
        for info in played["infos"]:
            if "episode" not in info:
                continue
            self.places.append((info["areas"], info["secrets"]))
            if self.progress.add_return(info["level"], info["episode"]["r"], self.thresholds):
                self.envs.env_method("set_level", self.progress.level)
                self.bar.write(f"step {self.progress.agent_steps:07d} | bots move up to level {self.progress.level}")
        return not self.is_interrupted()

    def _log(self, steps_per_s: float) -> None:
        progress, total = self.progress, self.args.total_timesteps
        progress.train_seconds = time.monotonic() - self.began_s
        mean_return = sum(progress.last_returns) / len(progress.last_returns) if progress.last_returns else None
        line = {
            "step": progress.agent_steps,
            "level": progress.level,
            "mean_return": mean_return,
            "mean_areas": sum(areas for areas, _ in self.places) / len(self.places) if self.places else None,
            "mean_secrets": sum(secrets for _, secrets in self.places) / len(self.places) if self.places else None,
            "steps_per_s": round(steps_per_s, 1),
            "train_seconds": round(progress.train_seconds, 1),
        }
        add_line(self.args.run_dir / METRICS_NAME, line)
        left_s = (total - progress.agent_steps) / max(steps_per_s, 1e-9)
        if self.args.max_train_minutes is not None:
            left_s = min(left_s, self.args.max_train_minutes * 60 - progress.train_seconds)
        self.bar.write(
            f"step {progress.agent_steps:07d}/{total} | level {progress.level} | "
            f"return {'n/a' if mean_return is None else format(mean_return, '.2f')} | "
            f"{steps_per_s:.0f} steps/s | eta {max(left_s, 0) / 60:.0f} min"
        )

    def evaluate(self) -> None:
        """Plays the evaluation episodes on the current level; the best policy so far is kept as the best model."""
        from policy import one_thread, save_policy
        from stable_baselines3.common.evaluation import evaluate_policy

        self.eval_envs.env_method("set_level", self.progress.level)
        # Sampled actions, not the likeliest ones: the way the policy plays when episodes are recorded.
        with one_thread():
            mean_return, spread = evaluate_policy(
                self.model,
                self.eval_envs,
                self.args.eval_episodes,
                deterministic=False,
                callback=self._raise_when_stopped,
            )
        result = {
            "agent_steps": self.progress.agent_steps,
            "level": self.progress.level,
            "mean_return": float(mean_return),
            "std_return": float(spread),
            "episodes": self.args.eval_episodes,
        }
        self.progress.evaluations.append(result)
        self.model.logger.record("eval/mean_reward", result["mean_return"])
        self.model.logger.record("eval/level", result["level"])
        self.model.logger.dump(self.progress.agent_steps)
        if rank(result) > best_rank(self.args.run_dir / BEST_NAME):
            save_policy(self.args.run_dir / BEST_NAME, self.model, {**self.facts, "evaluation": result})
        self.bar.write(
            f"step {result['agent_steps']:07d} | evaluation on level {result['level']}: "
            f"return {result['mean_return']:.2f} +- {result['std_return']:.2f}"
        )

    def _raise_when_stopped(self, _locals: dict[str, Any], _globals: dict[str, Any]) -> None:
        if self.stopper.signal is not None:
            raise Stopped

    def save(self) -> None:
        """The checkpoint: policy, optimizer and progress in one file, replaced as one; the one before it is kept."""
        from episode_recorder import partial_path
        from policy import save_policy

        previous = self.args.run_dir / PREVIOUS_NAME
        save_policy(self.checkpoint, self.model, self.facts, state=asdict(self.progress), keep_old=previous)
        evaluations = self.args.run_dir / "evaluations.json"
        with writing(evaluations):
            text = json.dumps(self.progress.evaluations, indent=2) + "\n"
            partial_path(evaluations).write_text(text, encoding="utf-8")
            os.replace(partial_path(evaluations), evaluations)

    def close(self) -> None:
        self.bar.close()
        self.envs.close()
        self.eval_envs.close()


def train(training: Training) -> None:
    """The loop: save, evaluate where it is due, then play and learn; so every way out has saved first."""
    while True:
        is_over = training.is_over()
        training.save()
        is_due = training.progress.steps_since_evaluation() >= training.args.eval_freq
        if training.stopper.signal is None and (is_due or is_over) and not training.progress.is_evaluated():
            try:
                training.evaluate()
            except Stopped:
                return
            training.save()
        if is_over:
            return
        training.learn()


def result_line(args: argparse.Namespace, progress: Progress) -> str:
    episodes = sum(1 for _ in args.out_base_dir.glob("*/level_*/env_*/episode_*.parquet"))
    best = args.run_dir / BEST_NAME
    return (
        f"{progress.agent_steps} agent steps, {progress.updates} epochs of learning, level {progress.level}, "
        f"{episodes} episodes under {args.out_base_dir}, "
        f"policy {best if best.exists() else args.run_dir / CHECKPOINT_NAME}; next: python encode_images.py "
        f"--dataset_basepath {args.out_base_dir}, or load_model_generate_dataset.py --policy {best} for more episodes"
    )


def push(args: argparse.Namespace, progress: Progress) -> None:
    """With --push_to_hub, uploads the best policy and its card; the run stays as it is, also when that fails."""
    if not args.push_to_hub:
        return
    from doom_env import EngineDied
    from policy_card import measured_beside_random, push_policy

    settings = {name: getattr(args, name) for name in PPO_FLAGS}
    try:
        figures = measured_beside_random(args, resolve_device(args.device))
        address = push_policy(args.run_dir, args.out_base_dir, args.hub_model_id, progress, settings, figures)
    except (BadInput, EngineDied) as error:
        best = args.run_dir / BEST_NAME
        raise BadInput(f"{error}; {best} is finished and kept, the same command with --resume uploads it") from None
    print(f"uploaded {args.run_dir / BEST_NAME} to {address} ({'public' if args.hub_public else 'private'})")


def main(args: argparse.Namespace) -> None:
    check_flags(args)
    if Path(args.scenario).is_file():
        args.scenario = str(Path(args.scenario).resolve())  # the policy remembers it, from any folder
    args.out_base_dir = args.out_base_dir.resolve()
    args.run_dir = (args.run_dir or args.out_base_dir / "policy").resolve()
    checkpoint, previous = args.run_dir / CHECKPOINT_NAME, args.run_dir / PREVIOUS_NAME
    check_writable(args.out_base_dir)
    check_writable(args.run_dir)
    if (checkpoint.exists() or previous.exists()) and not args.resume:
        raise BadInput(f"{args.run_dir} holds another run; add --resume to go on with it, or choose other folders")

    from actions import table_rows
    from doom_env import DoomEnv
    from episode_recorder import EpisodeRecorder, claimed_folder

    # Checks the flags; starts no game.
    game = DoomEnv(**{name: getattr(args, name) for name in (*GAME_FLAGS, *AGENT_FLAGS)})
    EpisodeRecorder(game, args.out_base_dir, record_stride=args.record_stride, episode=0)
    facts = {
        "format_version": 1,
        "scenario": args.scenario,
        "action_set": args.action_set,
        "action_table": table_rows(game.actions),
        **{name: getattr(args, name) for name in AGENT_FLAGS},
        "repeat_probability": args.repeat_probability,
        "tics_per_step": game.tics_per_step,
        "has_bots": game.is_deathmatch,
    }
    game.close()
    if args.push_to_hub:
        args.hub_model_id = open_repository(
            args.hub_model_id, flag="--hub_model_id", repo_type="model", is_public=args.hub_public
        )
    identity = {"recorded_by": "training", **{name: getattr(args, name) for name in GAME_FLAGS + RECORDING_FLAGS}}
    # Only where they are not the defaults: folders older than these flags go on.
    agent = {**AGENT_FLAGS, "repeat_probability": 0.0, "record_depth": False}
    identity |= {name: getattr(args, name) for name, default in agent.items() if getattr(args, name) != default}
    with claimed_folder(
        args.out_base_dir,
        identity,
        episodes="**/episode_*.parquet",
        partials="*/level_*/env_*/.episode_*.partial.parquet",
        resume=args.resume,
        cure="add --resume to go on with its own run, or choose another --out_base_dir",
    ):
        with writing(args.run_dir):
            args.run_dir.mkdir(parents=True, exist_ok=True)
        whole_checkpoint(checkpoint, previous)
        progress = saved_progress(checkpoint)
        if progress and progress.is_finished(args) and progress.is_evaluated():
            print(f"already complete, nothing to do: {result_line(args, progress)}")
            push(args, progress)
            return
        device = resolve_device(args.device)
        print_settings(args, device=device, actions=len(facts["action_table"]))
        progress = progress or Progress(run_id=os.urandom(8).hex(), level=args.start_level)
        training = Training(args, device, progress, facts)
        try:
            train(training)
        except (EOFError, ConnectionError) as error:
            reason = f"a game's process ended ({error!r}), its own error is above"
            sys.exit(f"{Path(sys.argv[0]).name}: {reason}; the same command with --resume goes on")
        finally:
            training.close()
        if training.stopper.signal is not None:
            print(f"stopped at {result_line(args, progress)}; the same command with --resume goes on")
            sys.exit(128 + training.stopper.signal)
        print(result_line(args, progress))
        push(args, progress)


if __name__ == "__main__":
    run(main, build_parser())
