"""Runs the project's scripts as a user does, in a process of their own; one thread, offline. Used by the tests only."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
STAGE_ONE = ("train_ppo_and_collect_data_parallel.py", "load_model_generate_dataset.py")
TIMEOUT_S = 600.0


def script_path(name: str) -> Path:
    """Where the script of that name lies: at the root, or in stage 1's folder."""
    return REPOSITORY / "ViZDoomPPO" / name if name in STAGE_ONE else REPOSITORY / name


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, but one thread: two under contention take many times as long."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", **(extra or {})}


def command_of(name: str, *args: object) -> list[str]:
    """The words of a command line."""
    return [sys.executable, str(script_path(name)), *(str(arg) for arg in args)]


def run_script(
    name: str, *args: object, cwd: Path | None = None, extra: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a script to its end, whatever that is; `stdout` and `stderr` are text."""
    return subprocess.run(
        command_of(name, *args), cwd=cwd, env=environment(extra), capture_output=True, text=True, timeout=TIMEOUT_S
    )


def launch(
    name: str, *args: object, processes: int = 2, extra: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a script as `accelerate launch --cpu --num_processes N` does; name: a script's, or a path."""
    path = script_path(name) if "/" not in name else Path(name)
    words = [Path(sys.executable).parent / "accelerate", "launch", "--cpu", "--num_processes", processes]
    words += ["--main_process_port", 0, path, *args]
    return subprocess.run(
        [str(word) for word in words], env=environment(extra), capture_output=True, text=True, timeout=TIMEOUT_S
    )


def succeed(name: str, *args: object, cwd: Path | None = None, extra: Mapping[str, str] | None = None) -> str:
    """Runs a script that must succeed, and returns its stdout."""
    done = run_script(name, *args, cwd=cwd, extra=extra)
    assert done.returncode == 0, f"{name} {' '.join(map(str, args))}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def refusal(name: str, *args: object, cwd: Path | None = None) -> str:
    """Runs a script that must refuse: exit code 2, one line on stderr that begins with its name. Returns that line."""
    done = run_script(name, *args, cwd=cwd)
    lines = done.stderr.splitlines()
    assert done.returncode == 2, f"exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert len(lines) == 1 and lines[0].startswith(f"{name}: "), done.stderr[-4000:]
    return lines[0]
