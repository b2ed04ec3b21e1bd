"""Records episodes on this machine, some at a time, each in a process of its own.

Knows nothing of games: what is recorded, and how, is `recording.py`. Used by `load_model_generate_dataset.py`.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.synchronize import Event
from pathlib import Path

from recording import RANDOM, RECORDERS, Recording

_interrupted: Event | None = None  # set in a worker by `start_worker`


def record_all(
    output: str,
    recording: Recording,
    output_dir: Path,
    device: str,
    wanted: list[int],
    workers: int,
    when_done: Callable[[], object],
) -> None:
    """Records the wanted episodes as `output` (parquet or gif), `workers` at a time; one alone needs no process.

    `when_done` is called after each of them."""
    if workers == 1:
        for episode in wanted:
            RECORDERS[output](recording, output_dir, device, episode)
            when_done()
        return
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if recording.policy != RANDOM and method == "forkserver":
        context.set_forkserver_preload(["stable_baselines3"])  # imported once for all workers
    interrupted = context.Event()
    with ProcessPoolExecutor(workers, context, start_worker, (interrupted,)) as pool:
        jobs = [pool.submit(work, output, recording, output_dir, device, episode) for episode in wanted]
        try:
            for job in as_completed(jobs):
                job.result()
                when_done()
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
