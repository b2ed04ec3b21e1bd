"""Promises to whoever has just cloned: `python play.py` plays what ships, `bash demo.sh` goes on from it.

The scripts are tried in a copy of the toolkit in which a small stand-in ships: nothing is written into this one."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from command import REPOSITORY, environment
from play_runs import DEADLINE_S, until
from safetensors import safe_open
from stage_one import call
from tiny_models import tiny_world_model

from engine import GameEngine
from episodes import POSE_COLUMNS, Episode, find_episodes
from metrics import psnr
from model import load_world_model
from real_game import policy_facts, shipped_policy

SHIPPED = REPOSITORY / "assets/models/small"
NO_SCREEN = {"DISPLAY": "", "WAYLAND_DISPLAY": ""}  # so that no browser opens


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of this checkout, its environment, and a random `smoke` world model of the shipped agent's actions."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        is_needed = not name.startswith("tests/test_") and Path(name).suffix not in (".gif", ".png")
        if is_needed and (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    table = tuple(policy_facts(shipped_policy())["action_table"])
    tiny_world_model(action_table=table, tics_per_second=35.0, frame_stride=4).save(folder / "assets/models/small")
    return folder


def test_what_ships_is_whole_small_exact_and_names_no_machine() -> None:
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16 * 2**20
    for path in files:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as tensors:
                dtypes = {tensors.get_tensor(name).dtype for name in tensors.keys() if name != "poses"}  # noqa: SIM118
            assert dtypes <= {torch.float16, torch.int64} or path.parent == SHIPPED and path.name.startswith("action_")
        elif path.suffix == ".json":
            assert not re.search(r"/(home|root|tmp|work|Users)\b", path.read_text()), path
    loaded = load_world_model(SHIPPED)
    table = policy_facts(shipped_policy())["action_table"]
    assert [dict(row) for row in loaded.config.action_table] == table  # so that the agent can be given the keys
    assert (
        loaded.config.geometry.preset == "small" and loaded.config.trained_steps > 0 and loaded.config.frame_stride == 2
    )
    assert len(loaded.start_contexts.latents) >= 4 and loaded.world_model.memory is not None


def test_what_ships_knows_the_game_that_is_installed(tmp_path: Path) -> None:
    """Fresh play, which it never saw: its pictures, and where a turn takes them."""
    flags = (
        "--policy explore --episodes 1 --episode_tics 700 --level 2 --bots 4 --seed 123 --screen_resolution RES_160X120"
    )
    recorder = REPOSITORY / "ViZDoomPPO/load_model_generate_dataset.py"
    flags += " --record_stride 2 --record_depth --output parquet"
    answer = call(recorder, *flags.split(), "--output_dir", tmp_path)
    assert answer.returncode == 0, answer.stderr[-2000:]
    loaded = load_world_model(SHIPPED)
    engine = GameEngine(loaded)
    [path] = find_episodes(tmp_path)
    with closing(Episode(path)) as episode:
        frames = episode.read_frames(range(350))
        actions = torch.from_numpy(episode.columns(["actions"])["actions"]).long()
        places = episode.columns(POSE_COLUMNS)
    poses = np.stack([places[name] for name in POSE_COLUMNS], axis=1).astype(np.float32)
    assert psnr(loaded.autoencoder.reconstruct(frames[::5]), frames[::5]).mean() > 25
    turning = [row["id"] for row in loaded.config.action_table if row["buttons"] in (["TURN_LEFT"], ["TURN_RIGHT"])]
    length = loaded.config.context_length
    last = [t for t in range(length - 1, 349) if set(actions[t - 1 : t + 1].tolist()) <= set(turning)][:24]
    assert len(last) == 24
    latents = engine.encode_frames(frames)
    windows = torch.tensor([list(range(t - length + 1, t + 1)) for t in last])
    beginning = (latents[windows], actions[windows[:, :-1]], list(range(24)), torch.from_numpy(poses)[windows])
    engine.reset(*beginning)
    dreamed = engine.step(actions[torch.tensor(last)])
    runtime = GameEngine(loaded, backend="onnx")
    runtime.reset(*beginning)
    exported = runtime.step(actions[torch.tensor(last)])
    assert np.abs(dreamed.astype(np.float64) - exported).mean() < 1
    next_frames = frames[[t + 1 for t in last]]
    assert psnr(dreamed, next_frames).mean() > psnr(frames[last], next_frames).mean() + 2


@contextmanager
def started(command: list[object], cwd: Path) -> Iterator[tuple[subprocess.Popen, list[str]]]:
    """(process, the lines it prints, as they come); at the end it and its children get Ctrl-C."""
    process = subprocess.Popen(
        [str(word) for word in command], env=environment(NO_SCREEN), cwd=cwd, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")), daemon=True)
    reader.start()
    try:
        yield process, lines
    finally:
        for number in (signal.SIGINT, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, number)
                try:
                    process.wait(DEADLINE_S)
                except subprocess.TimeoutExpired:
                    continue
        reader.join(DEADLINE_S)


def page_address(process: subprocess.Popen, lines: list[str], deadline_s: float) -> str:
    def found() -> str | None:
        assert process.poll() is None, "".join(lines)[-4000:]
        return next((line.split()[2] for line in list(lines) if line.startswith("play at ")), None)

    return str(until(found, "the page's address is printed", deadline_s))


def test_right_after_a_clone_the_shipped_model_is_played_from_anywhere(clone: Path, tmp_path: Path) -> None:
    newer = tmp_path / "runs/mine/world_model"
    tiny_world_model().save(newer)
    os.utime(newer / "config.json", (4_000_000_000, 4_000_000_000))
    with started([sys.executable, clone / "play.py", "--port", 0], tmp_path) as (process, lines):
        address = page_address(process, lines, DEADLINE_S)
        assert urllib.request.urlopen(address, timeout=DEADLINE_S).status == 200
    said = "".join(lines)
    assert f"\nmodel: {clone}/assets/models/small, smoke at 8.75 frames/s, 2 beginnings\n" in said
    assert f"model_folder: {clone}/assets/models/small\n" in said


def answer(script: Path, *words: object, cwd: Path) -> str:
    """The one line by which demo.sh refuses, before it installs or makes anything."""
    done = subprocess.run(
        ["bash", str(script), *(str(word) for word in words)],
        cwd=cwd, env=environment(), capture_output=True, text=True, timeout=DEADLINE_S,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr[-2000:]
    return done.stderr


def test_without_a_model_the_demo_names_the_way_from_nothing(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "demo.sh", tmp_path)
    line = answer(tmp_path / "demo.sh", cwd=tmp_path)
    assert "no model ships" in line and "bash demo.sh --from_scratch" in line and "--model_folder" in line
    assert [path.name for path in tmp_path.iterdir()] == ["demo.sh"]


def test_what_the_demo_cannot_do_it_says_in_one_line(clone: Path, tmp_path: Path) -> None:
    script = clone / "demo.sh"
    assert "--minutes 'soon' is not a number of at least 0.1" in answer(script, "--minutes", "soon", cwd=tmp_path)
    line = answer(script, "--from_scratch", "--minutes", 1, cwd=tmp_path)
    assert "--minutes '1' is not a number of at least 2" in line
    line = answer(script, "--from_scratch", "--model_folder", clone / "assets/models/small", cwd=tmp_path)
    assert "leave one out" in line
    assert "nowhere: not a world-model folder" in answer(script, "--model_folder", "nowhere", cwd=tmp_path)
    assert "--from_here is no flag of mine" in answer(script, "--from_here", cwd=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_holds_the_work_of_one_way_and_one_model(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old/first_minutes").write_text("14\n")
    line = answer(clone / "demo.sh", "--out", "old", cwd=tmp_path)
    assert "old was begun with --from_scratch; add it, or name another folder" in line
    (tmp_path / "other").mkdir()
    (tmp_path / "other/started_from").write_text("/elsewhere/model\n")
    line = answer(clone / "demo.sh", "--out", "other", cwd=tmp_path)
    assert "other goes on from /elsewhere/model, not " in line
    assert "goes on from /elsewhere/model" in answer(
        clone / "demo.sh", "--from_scratch", "--out", "other", cwd=tmp_path
    )


@pytest.mark.slow
@pytest.mark.skipif(not list(REPOSITORY.glob(".venv/installed-*")), reason="bash test.sh makes the environment")
def test_the_demo_records_trains_on_compares_and_opens_the_page(clone: Path, tmp_path: Path) -> None:
    (clone / ".venv").symlink_to((REPOSITORY / ".venv").resolve())
    words = ["bash", clone / "demo.sh", "--minutes", 0.1, "--out", "new", "--play", "--port", 0, "--device", "cpu"]
    with started(words, tmp_path) as (process, lines):
        page_address(process, lines, 900)
    said, out = "".join(lines), tmp_path / "new"
    assert [line.split("]")[0] for line in lines if re.match(r"\[\d/7\]", line)] == [f"[{n}/7" for n in range(1, 8)]
    episodes = sorted(path.relative_to(out / "episodes").parts[:3] for path in out.glob("episodes/**/*.parquet"))
    players = [("level_2", "explore"), ("level_5", "best_model")]
    assert episodes == [(split, *player) for split in ("eval", "train") for player in players]
    continued, stand_in = (load_world_model(path) for path in (out / "world_model_run", clone / "assets/models/small"))
    assert continued.config.encoder_sha256 == stand_in.config.encoder_sha256
    assert continued.config.trained_steps > 0 and continued.config.frame_stride == 4
    measured = [json.loads(line) for line in (out / "world_model_run/metrics.jsonl").read_text().splitlines()]
    measured = [line for line in measured if "model_psnr_db" in line]
    rows = {line.split()[0]: line for line in lines if "one step ahead" in line and "over rollouts of 64" in line}
    assert list(rows) == ["copy_last", "constant", "ceiling", "shipped", "continued"]
    for name, line, folder in (("shipped", measured[0], "rollouts_shipped"), ("continued", measured[-1], "rollouts")):
        rollout = json.loads((out / folder / "rollouts.json").read_text())["rows"]["model"]
        for row in (
            f"ahead {line['model_psnr_db']:.2f} dB, detail {line['model_detail']:.2f} ",
            f"frames {rollout['psnr_db']:.2f} dB, detail {rollout['detail']:.2f}\n",
        ):
            assert row in rows[name]
    assert measured[0]["step"] == 0 and (out / "rollouts/rollout_3.gif").is_file()
    assert f"play.py --model_folder {clone}/assets/models/small\n" in said
    assert f"\nmodel: {out}/world_model_run/world_model, smoke at 8.75 frames/s" in said
