"""Scripts in processes of their own that start at once, since what is slow to import is imported once before them.

They are real processes running the real script: they can be killed, limited and looked at. Used by the tests only."""

import functools
import multiprocessing
import os
import resource
import runpy
import signal
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

from command import REPOSITORY, environment, script_path

HEAVY = ["torch", "diffusers", "transformers", "accelerate", "pyarrow.parquet", "children", "training", "validation"]
HEAVY += ["encode_images", "finetune_vae", "train_text_to_image", "engine", "diffusers.optimization", "PIL.Image"]


@functools.cache
def _context() -> ForkServerContext:
    paths = [str(REPOSITORY / "tests"), str(REPOSITORY)]
    before = dict(os.environ)
    os.environ.update(environment({"PYTHONPATH": os.pathsep.join(paths)}))
    try:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(HEAVY)
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


class Child:
    """One run of a script. `stdout` and `stderr` hold what it has said so far."""

    def __init__(self, folder: Path, name: str, *words: object, file_limit_bytes: int | None = None) -> None:
        """folder: where its output is kept. file_limit_bytes: no file of it may grow beyond, as on a full disk."""
        folder.mkdir(parents=True, exist_ok=True)
        self.outputs = [folder / "stdout", folder / "stderr"]
        args = (name, [str(word) for word in words], [str(path) for path in self.outputs], file_limit_bytes)
        self.process = _context().Process(target=_run_script, args=args)
        self.process.start()

    def wait(self) -> int:
        """Its exit code, minus the number of a signal that ended it."""
        self.process.join(600)
        assert self.process.exitcode is not None, "still running after ten minutes"
        return self.process.exitcode

    def kill(self) -> bool:
        """SIGKILL; whether that met it alive."""
        self.process.kill()
        return self.wait() == -signal.SIGKILL

    @property
    def stdout(self) -> str:
        return self.outputs[0].read_text()

    @property
    def stderr(self) -> str:
        return self.outputs[1].read_text()


def run_in_child(target: Callable[..., None], *args: object) -> int:
    """Runs a function of a test module in a process of its own; its exit code."""
    process = _context().Process(target=target, args=args)
    process.start()
    process.join(600)
    return process.exitcode


def _run_script(name: str, words: list[str], outputs: list[str], file_limit_bytes: int | None) -> None:
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if file_limit_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit_bytes, file_limit_bytes))
    import training

    training.LOG_EVERY_SECONDS = 1e9  # else a machine that stalls adds lines to metrics.jsonl
    sys.argv = [str(script_path(name)), *words]
    runpy.run_path(sys.argv[0], run_name="__main__")
