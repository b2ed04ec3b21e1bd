"""Stage 1's scripts as tests run them: tiny games, processes that can be told apart and killed, what is in a folder."""

import contextlib
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow.parquet as pq
from episode_recorder import METADATA_KEY

STAGE1 = Path(__file__).resolve().parent.parent / "ViZDoomPPO"
TRAIN, GENERATE = STAGE1 / "train_ppo_and_collect_data_parallel.py", STAGE1 / "load_model_generate_dataset.py"
SMALL_GAME = ["--scenario", "basic", "--screen_resolution", "RES_160X120", "--episode_tics", "80", "--device", "cpu"]
TINY = [*SMALL_GAME, "--n_steps", "32", "--batch_size", "32", "--n_epochs", "1", "--eval_episodes", "1"]
ONE_GAME = [*TINY, "--n_train_envs", "1"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}


def call(
    script: Path,
    *flags: str | Path | int,
    cwd: Path | None = None,
    extra: Mapping[str, str] | None = None,
    timeout_s: float = 300,
) -> subprocess.CompletedProcess[str]:
    """A script run to its end; `extra` goes into its environment."""
    command = [sys.executable, str(script), *map(str, flags)]
    environment = ENVIRONMENT | dict(extra or {})
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=environment, cwd=cwd)


def start(
    script: Path, *flags: str | Path | int, stderr: Path | None = None, extra: Mapping[str, str] | None = None
) -> tuple[subprocess.Popen[bytes], str]:
    """A script left running, its output discarded, and the mark by which `still_running` knows what it started.

    With `stderr` what it says there goes to that file."""
    mark = f"GAME_TEST_MARK={os.urandom(8).hex()}"
    command = [sys.executable, str(script), *map(str, flags)]
    environment = ENVIRONMENT | dict(extra or {}) | dict([mark.split("=")])
    with open(stderr or os.devnull, "wb") as said:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, env=environment), mark


def still_running(mark: str) -> list[str]:
    """The processes that carry the mark in their environment, engines included; nothing to see without /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


def processes_of(mark: str, program: bytes) -> list[int]:
    """The running processes with `mark` in their environment whose command line holds `program`."""
    found = []
    for number in still_running(mark):
        with contextlib.suppress(OSError):
            if program in Path(f"/proc/{number}/cmdline").read_bytes():
                found.append(int(number))
    return found


def parent_of(process_id: int) -> int:
    return int(Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[1])


def wait_for(condition: Callable[[], object], limit_s: float = 60) -> None:
    until_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until_s, "waited in vain"
        time.sleep(0.02)


def contents(folder: Path) -> dict[str, bytes]:
    """Every finished episode with its bytes."""
    paths = [path for pattern in ("*.parquet", "*.gif") for path in folder.rglob(f"episode_{pattern}")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}


def footer(path: Path) -> dict:
    return json.loads(pq.ParquetFile(path).metadata.metadata[METADATA_KEY])


def state(folder: Path, name: str = "last_model.zip") -> dict:
    """What a run's checkpoint says of how far it is."""
    with zipfile.ZipFile(folder / "policy" / name) as archive:
        return json.loads(archive.read("state.json"))


def is_refused(result: subprocess.CompletedProcess[str], *words: str) -> bool:
    """One line on stderr with all the words, exit code 2."""
    lines = result.stderr.strip().splitlines()
    return result.returncode == 2 and len(lines) == 1 and all(word in lines[0] for word in words)
