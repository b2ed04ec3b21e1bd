"""Ports and folders of the engine's processes, and the end of those whose owner was killed. Knows no game."""

import os
import shutil
import signal
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

FOLDER_PREFIX = "doom_env_"


def new_folder() -> Path:
    """A folder of this process's own, by whose name `end_orphans` tells whose engine runs in it."""
    return Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}_"))


def free_port() -> int:
    """A UDP port nobody uses at this moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def end_orphans() -> None:
    """Ends the engines of Python processes that were killed: they would wait for orders forever."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*_*"):
        owner = folder.name.removeprefix(FOLDER_PREFIX).split("_")[0]
        if not owner.isdigit() or _is_running(int(owner)):
            continue
        for command in Path("/proc").glob("[0-9]*/cmdline"):  # none outside Linux
            with suppress(OSError):
                if f"{folder}/".encode() in command.read_bytes():
                    os.kill(int(command.parent.name), signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def _is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
