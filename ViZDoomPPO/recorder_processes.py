"""Records episodes on this machine, some at a time, each in a process of its own, which a game may take down with it.

Knows nothing of games: what is recorded, and how, is `recording.py`. Used by `load_model_generate_dataset.py`.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TYPE_CHECKING

from console import noted_interrupts
from doom_env import EngineDied
from engine_processes import end_orphans
from recording import BUILT_IN, RECORDERS, RecorderDied, Recording

if TYPE_CHECKING:
    from tqdm import tqdm

LOOK_S = 1.0  # how often to look whether somebody interrupts
MOST_DEATHS = 3  # in a row, with no episode finished between them: then it is no accident

_interrupted: Event | None = None  # set in a worker by `start_worker`


def record_all(
    output: str, recording: Recording, output_dir: Path, device: str, wanted: list[int], workers: int, bar: "tqdm"
) -> None:
    """Records the wanted episodes as `output` (parquet or gif), `workers` at a time.

    `bar` counts them. When a worker or a game's engine dies, the episodes it had begun are recorded again; raises
    RecorderDied when that happens MOST_DEATHS times with nothing finished between."""
    left, deaths = list(wanted), 0
    while left:
        before = len(left)
        try:
            with closing(_recorded(output, recording, output_dir, device, tuple(left), workers)) as recorded:
                for episode in recorded:
                    left.remove(episode)
                    bar.update()
        except (BrokenProcessPool, EngineDied) as error:
            deaths = deaths + 1 if len(left) == before else 1
            end_orphans()
            if deaths == MOST_DEATHS:
                raise RecorderDied(f"recorders died {deaths} times with nothing finished, the last: {error}") from error
            bar.write(f"a recorder died ({error}); what it had begun is recorded again", file=sys.stderr)


def _recorded(
    output: str, recording: Recording, output_dir: Path, device: str, wanted: tuple[int, ...], workers: int
) -> Iterator[int]:
    """Each wanted episode's number once it is recorded."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if recording.policy not in BUILT_IN and method == "forkserver":
        context.set_forkserver_preload(["stable_baselines3"])  # imported once for all workers
    interrupted = context.Event()
    with noted_interrupts() as stopped, ProcessPoolExecutor(workers, context, start_worker, (interrupted,)) as pool:
        jobs = {pool.submit(work, output, recording, output_dir, device, n): n for n in wanted}
        waiting = set(jobs)
        try:
            while waiting:
                done, waiting = wait(waiting, LOOK_S, FIRST_COMPLETED)
                for job in done:
                    job.result()
                    yield jobs[job]
                if stopped.is_set():
                    raise KeyboardInterrupt
        except BaseException:
            interrupted.set()
            pool.shutdown(cancel_futures=True)
            raise


def work(output: str, recording: Recording, output_dir: Path, device: str, episode: int) -> Path:
    """One episode, in a worker."""
    return RECORDERS[output](recording, output_dir, device, episode, _interrupted.is_set)


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
