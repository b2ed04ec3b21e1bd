"""Promises when things go wrong: killed at any moment, on a full disk, beside a damaged checkpoint, nothing is lost."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from children import Child, run_in_child
from episode_factory import write_episode
from safetensors.torch import load_file
from small_runs import (
    HALF_STEPS,
    STEPS,
    autoencoder_words,
    call,
    changed_words,
    episodes,
    logged,
    random_autoencoder,
    world_model_words,
    write_play,
)

import artifacts
import training
from artifacts import put_back, remove_leftovers, replacing_folder
from command_line import BadInput

KILLS = 3
TRAIN_STEPS = 40
TRAINERS = {"train_text_to_image.py": world_model_words, "finetune_vae.py": autoencoder_words}
NAMES = ["encode_images.py", *TRAINERS]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(autouse=True)
def only_checkpoints_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the machine stalls for ten seconds a run would log once more."""
    monkeypatch.setattr(training, "LOG_EVERY_SECONDS", 1e9)


def command_words(name: str, base: Path, output: Path) -> tuple[object, ...]:
    """A command line of some seconds of work, which writes into `output` often."""
    if name in TRAINERS:
        flags = {"max_train_steps": TRAIN_STEPS, "checkpointing_steps": 2, "validation_steps": 10}
        return changed_words(TRAINERS[name](base, output), **flags)
    play = base / "longer_play"
    if not play.is_dir():
        for number in range(8):
            write_play(play / f"train/level_0/random/episode_{number:06d}.parquet", 96, seed=number)
    words = ("--dataset_basepath", play, "--save_dir_path", output, "--model_folder_or_id", random_autoencoder(base))
    return (*words, "--all_tics", "--batch_size", 1, "--dataloader_num_workers", 0, "--device", "cpu")


def progress(name: str, output: Path) -> int:
    """What is finished so far: latent files, or the step of the newest checkpoint."""
    if name == "encode_images.py":
        return len(list(output.glob("**/latent_episode_*.pt")))
    return max((int(path.name.split("-")[1]) for path in output.glob("checkpoint-*")), default=0)


def contents(folder: Path) -> dict[str, object]:
    """Every file below a folder, hidden ones too: its bytes, but for clock times the numbers around them."""
    found: dict[str, object] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        found[name] = path.read_bytes()
        if path.name == "state.json":
            found[name] = {key: value for key, value in json.loads(found[name]).items() if key != "trained_seconds"}
        elif path.name == "metrics.jsonl":
            clocks = ("frames_per_s", "data_share", "eta_s")
            rows = [json.loads(line) for line in found[name].splitlines()]
            found[name] = [{key: value for key, value in row.items() if key not in clocks} for row in rows]
    return found


def last_line(child: Child, name: str) -> str:
    """The one line a refused script ends with, after its progress bars."""
    lines = [line for line in child.stderr.replace("\r", "\n").splitlines() if f"{name}: " in line]
    assert len(lines) == 1 and "Traceback" not in child.stderr, child.stderr
    return lines[0]


# ------------------------------------------------------------------------------------------------ kills


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_killed_at_random_moments_of_its_work_it_ends_with_the_same_files(
    name: str, base: Path, tmp_path: Path
) -> None:
    undisturbed = Child(tmp_path / "said", name, *command_words(name, base, tmp_path / "whole"))
    assert undisturbed.wait() == 0, undisturbed.stderr
    moments = random.Random(name)
    end = progress(name, tmp_path / "whole")
    kills: list[int] = []
    for _ in range(5 * KILLS):
        if len(kills) == KILLS:
            break
        child = Child(tmp_path / "said", name, *command_words(name, base, tmp_path / "killed"))
        goal = 1 + len(kills) * end // (KILLS + 1)
        while progress(name, tmp_path / "killed") < goal and child.process.is_alive():
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.2))
        is_alive = child.kill()
        kills.append(progress(name, tmp_path / "killed"))
        if not is_alive or kills[-1] >= end:  # this process was late, the run at its end: no kill within its work
            shutil.rmtree(tmp_path / "killed")
            kills = []
    assert len(kills) == KILLS and kills[0] >= 1 and kills == sorted(kills), (kills, child.stderr)
    last = Child(tmp_path / "said", name, *command_words(name, base, tmp_path / "killed"))
    assert last.wait() == 0, last.stderr
    whole, killed = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    assert list(killed) == list(whole)
    for path, expected in whole.items():
        assert killed[path] == expected, path
    if name in TRAINERS:
        steps = [row["step"] for row in whole["metrics.jsonl"] if "loss" in row]
        assert steps == list(range(2, TRAIN_STEPS + 1, 2))


def _die_between_renames(path: str) -> None:
    replace = os.replace

    def replace_once(source: object, target: object) -> None:
        replace(source, target)
        if "replaced" in str(target):
            os.kill(os.getpid(), signal.SIGKILL)

    artifacts.os.replace = replace_once
    with replacing_folder(path) as folder:
        (folder / "weights").write_text("new")


def test_a_kill_between_the_two_renames_of_a_folder_loses_nothing(tmp_path: Path) -> None:
    for restore in (
        lambda path: put_back(path),
        lambda path: remove_leftovers(path.parent),
        lambda path: _write(path, "third"),
    ):
        path = tmp_path / "world_model"
        _write(path, "old")
        assert run_in_child(_die_between_renames, str(path)) == -signal.SIGKILL
        assert not path.exists()
        restore(path)
        expected = "old" if restore.__code__.co_names[0] != "_write" else "third"
        assert (path / "weights").read_text() == expected
        remove_leftovers(tmp_path)
        assert [each.name for each in tmp_path.iterdir()] == ["world_model"]


def _write(path: Path, text: str) -> None:
    with replacing_folder(path) as folder:
        (folder / "weights").write_text(text)


def test_a_model_that_lay_aside_when_its_trainer_was_killed_is_there_again_after_the_next_start(
    base: Path, tmp_path: Path
) -> None:
    words = changed_words(world_model_words(base, tmp_path / "run"), max_train_steps=1, checkpointing_steps=1)
    call("train_text_to_image.py", *words)
    before = contents(tmp_path / "run")
    os.replace(tmp_path / "run" / "world_model", tmp_path / "run" / ".world_model.replaced-0123abcd")
    call("train_text_to_image.py", *words)
    assert contents(tmp_path / "run") == before


# ------------------------------------------------------------------------------------------------ damaged checkpoints


@pytest.mark.parametrize("name", ["model", "ema", "optimizer"])
def test_a_checkpoint_cut_short_is_named_and_the_one_before_goes_on_to_the_same_end(
    name: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = changed_words(world_model_words(base, tmp_path / "run"), max_train_steps=4, checkpointing_steps=2)
    call("train_text_to_image.py", *words)
    before = contents(tmp_path / "run")
    damaged = tmp_path / "run" / "checkpoint-4" / f"{name}.safetensors"
    os.truncate(damaged, damaged.stat().st_size // 2)
    with pytest.raises(BadInput, match=rf"checkpoint-4 is damaged \({name}.safetensors is cut short\); .*checkpoint-2"):
        call("train_text_to_image.py", *changed_words(words, resume_from_checkpoint="checkpoint-4"))
    capsys.readouterr()
    call("train_text_to_image.py", *words)
    said = capsys.readouterr().out.splitlines()
    assert said.index(
        f"{damaged.parent} is damaged ({name}.safetensors is cut short): going on from checkpoint-2, "
        "the newest that is whole"
    ) < said.index(f"resumed from {tmp_path}/run/checkpoint-2")
    assert contents(tmp_path / "run") == before


def test_where_every_checkpoint_is_damaged_nothing_is_trained_over_them(base: Path, tmp_path: Path) -> None:
    words = changed_words(autoencoder_words(base, tmp_path / "run"), max_train_steps=2, checkpointing_steps=1)
    call("finetune_vae.py", *words)
    for step in (1, 2):
        os.truncate(tmp_path / "run" / f"checkpoint-{step}" / "ema.safetensors", 5)
    before = contents(tmp_path / "run")
    for wanted in ("latest", "none"):
        child = Child(tmp_path / "said", "finetune_vae.py", *changed_words(words, resume_from_checkpoint=wanted))
        assert child.wait() == 2
        (line,) = [line for line in child.stderr.splitlines() if line.startswith("finetune_vae.py: ")]
        assert "checkpoint-2 is damaged (ema.safetensors is cut short), and there is no other checkpoint; " in line
        assert "Traceback" not in child.stderr
    assert contents(tmp_path / "run") == before


# ------------------------------------------------------------------------------------------------ weights gone wrong


@pytest.mark.parametrize("name", TRAINERS)
def test_a_loss_that_is_no_number_is_one_line_and_the_last_checkpoint_goes_on_to_the_same_end(
    name: str, base: Path, tmp_path: Path
) -> None:
    often = {"lr_warmup_steps": 0, "checkpointing_steps": 2, "validation_steps": 2}
    words = {key: changed_words(TRAINERS[name](base, tmp_path / key), **often) for key in ("whole", "run")}
    call(name, *changed_words(words["whole"], max_train_steps=4))
    call(name, *changed_words(words["run"], max_train_steps=2))
    good = contents(tmp_path / "run")
    child = Child(tmp_path / "said", name, *changed_words(words["run"], max_train_steps=9, learning_rate=1e30))
    assert child.wait() == 2, child.stderr
    line = last_line(child, name)
    assert line.startswith(f"{name}: the loss became ") and line == child.stderr.splitlines()[-1]
    assert line.endswith("the same command goes on from checkpoint-2, with a lower --learning_rate")
    assert contents(tmp_path / "run") == good
    call(name, *changed_words(words["run"], max_train_steps=4))
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


# ------------------------------------------------------------------------------------------------ disks


@contextlib.contextmanager
def small_disk(folder: Path, size_bytes: int, *options: str) -> Iterator[Callable[[int], None]]:
    """A file system of that size at `folder`; yields what gives it another size. Skips where that is not allowed."""
    folder.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", ",".join((f"size={size_bytes}", *options)), "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("a file system of a few bytes can only be mounted by root")
    try:
        yield lambda size: subprocess.run(
            ["mount", "-o", f"remount,size={size}", str(folder)], capture_output=True, check=True
        )
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_one_line_and_with_more_space_it_goes_on_to_the_same_files(
    name: str, base: Path, tmp_path: Path
) -> None:
    flags = {"checkpointing_steps": 10, "validation_steps": 10} if name in TRAINERS else {}
    words = {
        key: changed_words(command_words(name, base, tmp_path / key / "out"), **flags) for key in ("whole", "full")
    }
    whole = Child(tmp_path / "said", name, *words["whole"])
    assert whole.wait() == 0, whole.stderr
    expected = contents(tmp_path / "whole" / "out")
    pages = [-(-path.stat().st_size // 4096) for path in (tmp_path / "whole" / "out").rglob("*") if path.is_file()]
    with small_disk(tmp_path / "full", int(0.8 * sum(pages)) * 4096) as resize:
        child = Child(tmp_path / "said", name, *words["full"])
        assert child.wait() == 2, child.stderr
        line = last_line(child, name)
        assert "No space left on device; free some space, then run the same command again" in line
        assert progress(name, tmp_path / "full" / "out") > 0
        for path in (tmp_path / "full" / "out").rglob("*.safetensors"):
            load_file(path)
        assert not [path for path in (tmp_path / "full" / "out").rglob("*") if "partial" in path.name]
        resize(4 * sum(pages) * 4096)
        again = Child(tmp_path / "said", name, *words["full"])
        assert again.wait() == 0, again.stderr
        assert contents(tmp_path / "full" / "out") == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_may_not_grow_is_one_line(name: str, base: Path, tmp_path: Path) -> None:
    """Needs no rights: the limit of a process stands for the disk."""
    words = command_words(name, base, tmp_path / "out")
    child = Child(tmp_path / "said", name, *words, file_limit_bytes=30_000)
    assert child.wait() == 2, child.stderr
    assert "File too large; a file may not grow that large here" in last_line(child, name)
    assert not [path for path in (tmp_path / "out").rglob("*") if "partial" in path.name]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_cannot_be_written_is_named_before_any_work(name: str, base: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    with contextlib.ExitStack() as stack:
        if os.geteuid() == 0:  # whom permissions do not stop
            stack.enter_context(small_disk(closed, 2**20, "ro"))
        else:
            closed.mkdir(mode=0o555)
        child = Child(tmp_path / "said", name, *command_words(name, base, closed / "out"))
        assert child.wait() == 2
        assert f"no permission to write in {closed}; name another folder" in last_line(child, name)
        assert child.stdout == ""


def test_a_picture_that_breaks_in_the_middle_of_training_is_one_line(base: Path, tmp_path: Path) -> None:
    play = tmp_path / "play"
    shutil.copytree(episodes(base), play)
    broken = sorted((play / "train").rglob("*.parquet"))[0]
    write_episode(broken, [0] * 24, frames=None, width=80, height=60, tics_per_second=10.0, tics_per_step=1)
    content = bytearray(broken.read_bytes())
    place = content.find(b"IDAT")
    content[place : place + 64] = b"x" * 64
    broken.write_bytes(content)
    words = changed_words(autoencoder_words(base, tmp_path / "run"), dataset_basepath=play, max_train_steps=50)
    child = Child(tmp_path / "said", "finetune_vae.py", *words)
    assert child.wait() == 2, child.stderr
    assert str(broken) in last_line(child, "finetune_vae.py")


def test_numbers_are_in_the_file_once_however_often_a_run_goes_on(base: Path, tmp_path: Path) -> None:
    words = changed_words(world_model_words(base, tmp_path / "run"), checkpointing_steps=HALF_STEPS)
    call("train_text_to_image.py", *words)
    whole = logged(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / f"checkpoint-{STEPS}")  # as if killed right before it
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 24, "lo')  # and in the middle of a line
    call("train_text_to_image.py", *words)
    assert [(row["step"], row.get("loss")) for row in logged(tmp_path / "run")] == [
        (row["step"], row.get("loss")) for row in whole
    ]
