"""Recording survives what goes wrong: kills, dying workers and engines, full and unwritable disks, poisoned files."""

import contextlib
import io
import os
import pickle
import random
import resource
import signal
import subprocess
import time
import zipfile
from pathlib import Path

import pytest
from console import BadInput
from episode_recorder import EpisodeWriter, partial_path
from stage_one import (
    GENERATE,
    ONE_GAME,
    TRAIN,
    call,
    contents,
    is_refused,
    parent_of,
    processes_of,
    start,
    still_running,
    wait_for,
)

EPISODES = 6
FLAGS = ["--policy", "random", "--scenario", "basic", "--screen_resolution", "RES_160X120", "--episode_tics", "120"]
FLAGS += ["--num_workers", "2"]
FOLDER = Path("train") / "level_5" / "random"


def everything(folder: Path) -> dict[str, bytes]:
    """Every file under `folder`, temporary ones included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """All that a run of FLAGS writes when nothing happens to it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    result = call(GENERATE, *FLAGS, "--episodes", EPISODES, "--output_dir", folder)
    assert result.returncode == 0, result.stderr
    files = everything(folder)
    assert len(files) == EPISODES + 1  # and recording.json
    return files


def test_killed_at_any_moment_and_started_again_it_writes_the_same_files(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    moments = random.Random(3)
    flags = [*FLAGS, "--episodes", EPISODES, "--output_dir", tmp_path]
    for _ in range(4):
        had = len(contents(tmp_path))
        run, _ = start(GENERATE, *flags)
        with contextlib.suppress(subprocess.TimeoutExpired):
            wait_for(lambda run=run, had=had: list(tmp_path.rglob(".episode*")) or run.poll() is not None)
            run.wait(timeout=moments.uniform(0, 0.4))
        run.kill()
        run.wait()
        assert len(contents(tmp_path)) >= had
    result = call(GENERATE, *flags)
    assert result.returncode == 0, result.stderr
    assert everything(tmp_path) == undisturbed


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes in /proc")
@pytest.mark.parametrize("victim", ["worker", "engine"])
def test_what_a_dying_worker_or_engine_had_begun_is_recorded_again(
    victim: str, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    run, mark = start(GENERATE, *FLAGS, "--episodes", EPISODES, "--output_dir", tmp_path)
    try:
        wait_for(lambda: processes_of(mark, b"-iwad") or run.poll() is not None)
        with contextlib.suppress(OSError, IndexError):  # gone by itself
            engine = processes_of(mark, b"-iwad")[0]
            os.kill(parent_of(engine) if victim == "worker" else engine, signal.SIGKILL)
        assert run.wait(timeout=120) == 0
    finally:
        run.kill()
        run.wait()
    wait_for(lambda: not still_running(mark))
    assert everything(tmp_path) == undisturbed


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes in /proc")
def test_an_engine_that_always_dies_is_told_in_one_line(tmp_path: Path) -> None:
    run, mark = start(GENERATE, *FLAGS, "--num_workers", "1", "--output_dir", tmp_path, stderr=tmp_path / "stderr")
    try:
        until_s = time.monotonic() + 120
        while run.poll() is None:
            assert time.monotonic() < until_s
            for engine in processes_of(mark, b"-iwad"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(engine, signal.SIGKILL)
            time.sleep(0.02)
    finally:
        run.kill()
        run.wait()
    assert run.returncode == 1
    last = (tmp_path / "stderr").read_text().splitlines()[-1]
    assert last.startswith("load_model_generate_dataset.py: recorders died 3 times")
    assert "Traceback" not in (tmp_path / "stderr").read_text()
    assert not contents(tmp_path) and not list(tmp_path.rglob("*.partial*"))
    wait_for(lambda: not still_running(mark))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's always full disk")
def test_a_full_disk_ends_the_recording_in_one_line_and_leaves_the_episodes_before_it(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = [*FLAGS, "--num_workers", "1", "--episodes", EPISODES, "--output_dir", out]
    run, mark = start(GENERATE, *flags, stderr=tmp_path / "stderr")
    try:
        wait_for(lambda: processes_of(mark, b"-iwad"))
        (engine,) = processes_of(mark, b"-iwad")
        last = out / FOLDER / f"episode_{EPISODES - 1:06d}.parquet"
        partial_path(last, parent_of(engine)).symlink_to("/dev/full")  # the disk is full when it comes to the last one
        assert run.wait(timeout=120) == 2
    finally:
        run.kill()
        run.wait()
    said = (tmp_path / "stderr").read_text()
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("load_model_generate_dataset.py: cannot write ")
    assert "No space left on device" in said.splitlines()[-1] and "what is finished is whole" in said.splitlines()[-1]
    assert everything(out) == {name: content for name, content in undisturbed.items() if last.name not in name}
    assert call(GENERATE, *flags).returncode == 0
    assert everything(out) == undisturbed


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's always full disk")
def test_an_episode_that_finds_the_disk_full_is_not_begun(tmp_path: Path) -> None:
    path = tmp_path / "episode_000000.parquet"
    partial_path(path, os.getpid()).symlink_to("/dev/full")
    with pytest.raises(BadInput, match=r"cannot write .*episode_000000.*No space left on device.*make room"):
        EpisodeWriter(path, {}, {})
    assert not list(tmp_path.iterdir())


def test_an_episode_that_outgrows_what_may_be_written_is_dropped_whole(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / "episode_000000.parquet", {}, {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(BadInput, match=r"cannot write .*episode_000000.*File too large.*make room"):
            for step in range(100):
                writer.add(bytes(100_000), 0, step, {})
        writer.discard()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        assert is_refused(call(GENERATE, *FLAGS, "--output_dir", folder), "cannot write", str(folder), "not a folder")
    assert (tmp_path / "file").read_text() == "precious"
    if Path("/sys/kernel").is_dir():  # not even root may make a folder there
        assert is_refused(call(GENERATE, *FLAGS, "--output_dir", "/sys/recorded"), "cannot write /sys/recorded")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 64 agent steps."""
    folder = tmp_path_factory.mktemp("trained")
    result = call(TRAIN, "--out_base_dir", folder, *ONE_GAME, "--total_timesteps", "64")
    assert result.returncode == 0, result.stderr
    return folder / "policy" / "last_model.zip"


@pytest.fixture
def kept_run(tmp_path: Path, checkpoint: Path) -> list[str | Path]:
    """The flags of a run that goes on from a copy of `checkpoint`, which has one before it."""
    (tmp_path / "run").mkdir()
    for name in ("last_model.zip", "previous_model.zip"):
        (tmp_path / "run" / name).write_bytes((checkpoint.parent / name).read_bytes())
    return [*ONE_GAME, "--out_base_dir", tmp_path / "out", "--run_dir", tmp_path / "run", "--resume"]


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    """The refusal of a training: exit code 2, no traceback."""
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr[-3000:]
    return result.stderr.strip().splitlines()[-1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's always full disk")
def test_a_full_disk_ends_the_training_in_one_line_and_its_checkpoint_goes_on(
    kept_run: list[str | Path], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "run" / "last_model.zip"
    before = checkpoint.read_bytes()
    partial_path(checkpoint).symlink_to("/dev/full")
    said = last_line(call(TRAIN, *kept_run, "--total_timesteps", "96"))
    assert said.startswith(f"{TRAIN.name}: cannot write ") and "No space left on device" in said
    assert checkpoint.read_bytes() == before and not list((tmp_path / "run").glob(".*"))
    going_on = call(TRAIN, *kept_run, "--total_timesteps", "96")
    assert going_on.returncode == 0, going_on.stderr[-3000:]


def test_a_training_is_refused_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for flags in (
        ["--out_base_dir", tmp_path / "file"],
        ["--out_base_dir", tmp_path, "--run_dir", tmp_path / "file/x"],
    ):
        assert is_refused(call(TRAIN, *ONE_GAME, *flags), "cannot write", str(tmp_path / "file"), "not a folder")
    assert (tmp_path / "file").read_text() == "precious"


def test_a_checkpoint_cut_short_gives_way_to_the_one_before(kept_run: list[str | Path], tmp_path: Path) -> None:
    checkpoint, previous = (tmp_path / "run" / name for name in ("last_model.zip", "previous_model.zip"))
    good = checkpoint.read_bytes()
    checkpoint.write_bytes(good[: len(good) // 2])
    going_on = call(TRAIN, *kept_run, "--total_timesteps", "96")
    assert going_on.returncode == 0, going_on.stderr[-3000:]
    assert "last_model.zip is damaged (" in going_on.stdout and "going on from previous_model.zip" in going_on.stdout
    for path in (checkpoint, previous):
        path.write_bytes(good[: len(good) // 2])
    said = last_line(call(TRAIN, *kept_run, "--total_timesteps", "128"))
    assert "last_model.zip is damaged (" in said and "previous_model.zip too; move both away" in said


def test_weights_that_blow_up_end_the_training_in_one_line_and_are_never_saved(
    kept_run: list[str | Path], tmp_path: Path
) -> None:
    import torch

    checkpoint = tmp_path / "run" / "last_model.zip"
    said = last_line(call(TRAIN, *kept_run, "--total_timesteps", "640", "--learning_rate", "1e30", "--n_epochs", "2"))
    assert "are not finite numbers; nothing of it was saved" in said and "lower --learning_rate" in said
    with zipfile.ZipFile(checkpoint) as archive:
        weights = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
    assert all(bool(torch.isfinite(weight).all()) for weight in weights.values())
    going_on = call(TRAIN, *kept_run, "--total_timesteps", "96")
    assert going_on.returncode == 0, going_on.stderr[-3000:]


class Payload:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("member", ["policy.pth", "policy.optimizer.pth", "pytorch_variables.pth"])
def test_a_checkpoint_with_a_payload_is_refused_unrun(member: str, tmp_path: Path, checkpoint: Path) -> None:
    import torch

    mark, run_dir = tmp_path / "mark", tmp_path / "run"
    run_dir.mkdir()
    torch.save({"x": Payload(mark)}, tmp_path / "payload.pth")
    with zipfile.ZipFile(checkpoint) as source, zipfile.ZipFile(run_dir / "last_model.zip", "w") as target:
        for name in source.namelist():
            poisoned = (tmp_path / "payload.pth").read_bytes() if name == member else source.read(name)
            target.writestr(name, poisoned)
    flags = ["--out_base_dir", tmp_path / "out", "--run_dir", run_dir, "--resume"]
    before = (run_dir / "last_model.zip").read_bytes()
    result = call(TRAIN, *ONE_GAME, *flags, "--total_timesteps", "96")
    assert result.returncode == 2 and not mark.exists()
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"{TRAIN.name}: ") and "last_model.zip" in last and "Traceback" not in result.stderr
    assert (run_dir / "last_model.zip").read_bytes() == before
    with pytest.raises(FileExistsError):  # the payload is real: mkdir runs where it is unpickled
        mark.mkdir()
        pickle.loads(pickle.dumps(Payload(mark)))
