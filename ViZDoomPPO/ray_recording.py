"""Records episodes over a Ray cluster, one core each; the finished files come back here, so no disk is shared.

An episode is a task without state: it holds its core only while it plays, so none waits for a core that an idle
recorder keeps, and what a lost node had begun is simply given out again. Ray reuses a task's process for the next
one, which keeps the policy loaded. Code, policy and scenario travel along; the packages must be installed on every
node, in the same versions, since other ones would play other games. Knows nothing of games, like
`recorder_processes.py`, its counterpart on one machine. Used by `load_model_generate_dataset.py --ray`.
"""

import importlib.metadata
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from console import BadInput, noted_interrupts, writing
from doom_env import EngineDied
from engine_processes import end_orphans
from episode_recorder import partial_path
from recording import RECORDERS, RecorderDied, Recording

if TYPE_CHECKING:
    import numpy as np
    from tqdm import tqdm

MOST_ATTEMPTS = 5  # at one episode: nodes come and go, but an episode that always kills its recorder does not end
LOOK_S = 1.0  # how often to look whether somebody interrupts, and whether the cluster has a core at all
END_S = 30.0  # how long interrupted recorders may take to close their games
PLAYED_WITH = ("vizdoom", "gymnasium", "numpy", "pillow", "pyarrow", "stable-baselines3", "torch")
DEVICE = "cpu"  # the same on every node, and so the same files


@contextmanager
def cluster(address: str, recording: Recording) -> Iterator[Recording]:
    """Connects to Ray as long as the context lasts; gives the recording as the nodes will find it.

    address: of a running cluster, `auto` for the one of this machine; empty: RAY_ADDRESS, the one of this machine, or
    a cluster of its own that ends with the context. Raises BadInput when there is none, or none with a core."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if _has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray turns it on by itself where it starts, not where it joins
    import ray

    with tempfile.TemporaryDirectory(prefix="recording_code_") as folder, writing(Path(tempfile.gettempdir())):
        shipped = _pack(Path(folder), recording)
        try:
            ray.init(
                address or None,
                runtime_env={"working_dir": folder},
                include_dashboard=None if address else False,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
        except (ConnectionError, ValueError, RuntimeError, ImportError, AssertionError) as error:
            where = f"--ray {address}" if address else "--ray"
            raise BadInput(f"{where} finds no cluster ({error}); start one with `ray start --head`") from error
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray has put its own in place
        try:
            if not cores():
                raise BadInput("the Ray cluster has no core to record with; start a node, or one with more --num-cpus")
            yield shipped
        finally:
            ray.shutdown()


def _has_token() -> bool:
    """Whether this user has a token for Ray clusters; one without authentication does not mind it."""
    named = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return named or (Path.home() / ".ray" / "auth_token").is_file()


def _pack(folder: Path, recording: Recording) -> Recording:
    """Copies into `folder` what the nodes need: this folder's code, the policy, a scenario of one's own.

    Returns the recording with paths relative to it: Ray lets the tasks run there."""
    here = Path(__file__).resolve().parent
    for source in here.glob("*.py"):
        shutil.copy(source, folder)
    shutil.copytree(here / "scenarios", folder / "scenarios")
    if Path(recording.policy).is_file():
        (folder / "policy").mkdir()
        shutil.copy(recording.policy, folder / "policy")
        recording = replace(recording, policy=f"policy/{Path(recording.policy).name}")
    scenario = Path(recording.scenario)
    if scenario.is_file():
        (folder / "own_scenario").mkdir()
        for source in {scenario, *scenario.parent.glob("*.wad")}:
            shutil.copy(source, folder / "own_scenario")
        recording = replace(recording, scenario=f"own_scenario/{scenario.name}")
    return recording


def cores() -> int:
    """How many episodes the cluster's living nodes can record at once."""
    import ray

    return int(ray.cluster_resources().get("CPU", 0))


def record_on_cluster(
    output: str, recording: Recording, folder: Path, wanted: Sequence[int], at_once: int | None, bar: "tqdm"
) -> None:
    """Records the wanted episodes as `output` (parquet or gif) into `folder` of this machine; `bar` counts them.

    recording: as `cluster` gave it. at_once: how many play at the same time, None: as many as there are cores, also
    those of nodes that join later. Raises RecorderDied when one episode loses its recorder MOST_ATTEMPTS times."""
    import ray

    task = ray.remote(num_cpus=1, max_retries=0)(record_on_node)  # tried again here, where it can be told
    versions = _versions()
    waiting, running, attempts = list(reversed(wanted)), {}, dict.fromkeys(wanted, 0)
    is_told = False  # that there is no core
    with noted_interrupts() as stopped:
        try:
            while waiting or running:
                # One more per core than there are: the next is there when a core gets free.
                while waiting and len(running) < (at_once or 2 * max(1, cores())):
                    episode = waiting.pop()
                    attempts[episode] += 1
                    running[task.remote(output, recording, episode, versions)] = episode
                done, _ = ray.wait(list(running), timeout=LOOK_S)
                if not done and not cores() and not is_told:
                    bar.write("the cluster has no core left; waiting for a node, Ctrl-C to stop", file=sys.stderr)
                is_told = not done and not cores()
                for job in done:
                    episode = running.pop(job)
                    try:
                        _write(ray.get(job), folder)
                        bar.update()
                    except ray.exceptions.RayError as error:
                        _check_again(episode, attempts[episode], error, bar)
                        waiting.append(episode)
                if stopped.is_set():
                    raise KeyboardInterrupt
        except ray.exceptions.RayError as error:
            raise RecorderDied(f"the cluster is lost ({_reason(error)})") from error
        except BaseException:
            _cancel(list(running))
            raise


def record_on_node(
    output: str, recording: Recording, episode: int, versions: dict[str, str]
) -> tuple[str, "np.ndarray"]:
    """On a node: records one episode. Returns its file's name and bytes, uint8 (N,)."""
    import numpy as np

    present = _versions()
    for name, version in versions.items():
        if present[name] != version:
            where = f"node {os.uname().nodename} has {name} {present[name]}"
            raise BadInput(f"{where}, this machine {version}: they would not play the same; install the same")
    end_orphans()
    with tempfile.TemporaryDirectory(prefix="recording_") as folder:
        path = RECORDERS[output](recording, Path(folder), DEVICE, episode)
        return path.name, np.fromfile(path, np.uint8)


def _versions() -> dict[str, str]:
    """The installed versions of what decides how a game goes."""
    found = {}
    for name in PLAYED_WITH:
        found[name] = "none"
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _write(result: tuple[str, "np.ndarray"], folder: Path) -> None:
    name, content = result
    path = folder / name
    with writing(path):
        try:
            content.tofile(partial_path(path))
            os.replace(partial_path(path), path)
        except OSError:
            partial_path(path).unlink(missing_ok=True)
            raise


def _check_again(episode: int, attempts: int, error: Exception, bar: "tqdm") -> None:
    """Tells why an episode is recorded again. Raises what trying again does not cure."""
    import ray

    if isinstance(error, ray.exceptions.RayTaskError):
        error = error.cause
        if not isinstance(error, EngineDied):
            raise error
    reason = _reason(error)
    if attempts == MOST_ATTEMPTS:
        raise RecorderDied(f"episode {episode} lost its recorder {attempts} times, the last: {reason}") from error
    bar.write(f"episode {episode} lost its recorder ({reason}); it is recorded again", file=sys.stderr)


def _reason(error: Exception) -> str:
    """The first sentence of an error."""
    return re.split(r"\n|\. ", str(error).strip())[0] or type(error).__name__


def _cancel(jobs: list[Any]) -> None:
    """Interrupts running recorders, which close their games; waits for that, but not for ever."""
    import ray

    with suppress(Exception):  # the cluster may be what is broken
        for job in jobs:
            ray.cancel(job)
        ray.wait(jobs, num_returns=len(jobs), timeout=END_S)
