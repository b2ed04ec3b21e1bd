"""The processes that share one command: this one's place among them, and how they end together.

`accelerate launch` and `torchrun` start the same command several times and tell each process its place in the
environment. Knows nothing of models or data, and no torch before it is needed. Used by command_line.py, and by the
scripts whose work is shared: encode_images.py and, through training.py, both trainers.
"""

import datetime
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PATIENCE_S = 30.0  # for a process that may not speak; more than processes of one machine differ in speed
WAIT = datetime.timedelta(days=1)  # for the others: one may validate, save or encode much longer than the rest
LAUNCHERS = ("launch", "launch.py", "accelerate-launch", "accelerate.commands.launch")
MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


class CannotStart(Exception):
    """The processes that were asked for cannot be had; the message is one line that ends with the cure."""


def rank() -> int:
    """This process's place among all, 0 for the first, also where it is alone."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Its place among those of this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def count() -> int:
    """How many processes share the command."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_cpu_asked_for() -> bool:
    """Whether the launcher was told to leave GPUs alone: `accelerate launch --cpu`."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")


def gathered(value: Any) -> list[Any]:
    """What each process gives, in their order; every process must call it, and the slowest is waited for."""
    if count() == 1:
        return [value]
    import torch.distributed as distributed

    if not distributed.is_initialized():
        distributed.init_process_group("gloo", timeout=WAIT)
    values: list[Any] = [None] * count()
    distributed.all_gather_object(values, value)
    return values


def wait_for_the_spokesman(error: Exception | None = None) -> None:
    """Before a last word: gives the process that may speak the time to do so; the launcher then ends this one.

    What is wrong with flags or data is wrong for all: the first process of each machine says it. Whoever fails alone
    speaks once the others had their chance. The first one itself waits only with an `error` of the connection: some
    other process went before it and has the reason."""
    if count() > 1 and (local_rank() > 0 or has_lost_others(error)):
        time.sleep(PATIENCE_S)


def has_lost_others(error: BaseException | None) -> bool:
    """Whether an error is that of a connection to processes that are gone."""
    words = ("gloo", "nccl", "peer", "socket")
    return count() > 1 and error is not None and any(word in str(error).lower() for word in words)


def missing() -> int:
    """How many processes `accelerate launch --cpu --num_processes N` should have started; 1 where nothing is missing.

    It leaves that to mpirun, and without one starts a single process: that would train with an N-th of the batch.
    Raises CannotStart with the cure when the launcher's words do not tell, or name several machines."""
    is_placed = any(name in os.environ for name in ("RANK", "LOCAL_RANK", *MPI))
    if is_placed or not is_cpu_asked_for() or "MASTER_ADDR" not in os.environ:
        return 1
    cure = "use accelerate launch --multi_gpu with the script's own --device cpu (it needs no GPU), or torchrun"
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8").split("\0")[:-1]
        first = next(n for n, word in enumerate(words) if Path(word).name in LAUNCHERS)
    except (OSError, StopIteration):
        raise CannotStart(f"accelerate launch --cpu starts one process without mpirun; {cure}") from None
    from accelerate.commands.launch import launch_command_parser

    launch = launch_command_parser().parse_args(words[first + 1 :])
    if (launch.num_machines or 1) > 1:
        raise CannotStart(f"accelerate launch --cpu starts one process a machine without mpirun; {cure}")
    return launch.num_processes or 1


def start(number: int) -> int:
    """Runs this very command in `number` processes, placed like a launcher places them. Returns their exit code.

    When one of them fails the others are ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    children: list[subprocess.Popen] = []
    try:
        for place in range(number):
            own = {name: str(value) for name, value in {**shared, "RANK": place, "LOCAL_RANK": place}.items()}
            children.append(subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env={**os.environ, **own}))
        while True:
            codes = [child.poll() for child in children]
            if any(codes) or None not in codes:
                return next((code for code in codes if code), 0)
            time.sleep(0.05)
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait()
