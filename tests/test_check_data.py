"""Promises of check_data.py: it counts, names what is broken, and finds actions that were shifted on purpose."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command import run_script, succeed
from episode_factory import write_episode
from small_runs import call

from action_alignment import LEADS, Play, estimate_lead, sideways_shift
from check_data import stretches
from episodes import Episode, find_episodes
from latents import save_latents

TICS = 500


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two real games of a random policy, 14 s each, keys held for 4 tics."""
    folder = tmp_path_factory.mktemp("recorded")
    words = ("--policy", "random", "--episodes", 2, "--episode_tics", TICS, "--output", "parquet")
    words += ("--screen_resolution", "RES_160X120", "--output_dir", folder)
    succeed("load_model_generate_dataset.py", *words)
    return folder


def rewritten(source: Path, target: Path, change: Callable[[pa.Table], pa.Table]) -> Path:
    """A copy of a folder of episodes with each file's table changed."""
    for path in sorted(source.rglob("*.parquet")):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(change(pq.read_table(path)), copy, row_group_size=64)
    return target


def shifted(source: Path, target: Path, rows: int) -> Path:
    """The same play with every action stored `rows` rows before the frame it was chosen on."""

    def shift(table: pa.Table) -> pa.Table:
        actions = np.roll(table.column("actions").to_numpy(), -rows)
        table = table.set_column(table.schema.get_field_index("actions"), "actions", pa.array(actions))
        return table.slice(max(0, -rows), len(table) - abs(rows))  # without those that came round

    return rewritten(source, target, shift)


def check(path: Path, out: Path, *flags: object) -> tuple[int, dict]:
    """(exit code, findings) of check_data.py in this process."""
    code = 0
    try:
        call("check_data.py", path, "--json", out / "check.json", *flags)
    except SystemExit as end:
        code = end.code
    return code, json.loads((out / "check.json").read_text())


# ------------------------------------------------------------------------------------------------ alignment


def test_a_recording_of_ours_leads_by_one_and_is_counted(recorded: Path, tmp_path: Path) -> None:
    out = tmp_path / "check.json"
    done = run_script("check_data.py", recorded, "--json", out)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "verdict: aligned: actions[t] leads to frames[t+1]"
    found = json.loads(out.read_text())
    assert (found["files"], found["games"], found["frames"], found["size"]) == (2, 2, 2 * TICS, "160x120")
    assert found["seconds"] == pytest.approx(2 * TICS / 35, abs=0.01) and found["broken"] == {}
    assert sum(row["frames"] for row in found["actions"]) == 2 * TICS
    assert len(found["actions"]) + len(found["unused"]) == 54
    assert (found["alignment"]["lead"], found["alignment"]["shift_rows"]) == (1, 0)


@pytest.mark.parametrize("rows", [-3, -1, 1, 2, 4])
def test_actions_shifted_on_purpose_are_found_to_the_row(recorded: Path, tmp_path: Path, rows: int) -> None:
    code, found = check(shifted(recorded, tmp_path / "shifted", rows), tmp_path)
    assert (code, found["alignment"]["shift_rows"], found["alignment"]["lead"]) == (1, rows, 1 + rows)
    assert (
        f"SHIFTED: the picture answers {abs(rows)} rows ({abs(rows)} tics) {'late' if rows > 0 else 'early'}"
        in (found["verdict"])
    )


@pytest.mark.parametrize("rows", [0, 1])
def test_without_an_action_table_the_turns_are_found_from_the_pictures(
    recorded: Path, tmp_path: Path, rows: int
) -> None:
    """Fewer actions than the recording's 54, so that each is seen often: what matters is which way it turns."""
    table = json.loads(pq.read_schema(next(recorded.rglob("*.parquet"))).metadata[b"neural_game_engine"])[
        "action_table"
    ]
    coarse = np.array([2 * ("TURN_LEFT" in row["buttons"]) + ("TURN_RIGHT" in row["buttons"]) for row in table])

    def strip(table: pa.Table) -> pa.Table:
        actions = pa.array(coarse[table.column("actions").to_numpy()])
        return pa.table({"frames": table.column("frames"), "actions": actions})

    plain = rewritten(shifted(recorded, tmp_path / "shifted", rows), tmp_path / "plain", strip)
    _, found = check(plain, tmp_path)
    assert found["alignment"]["lead"] == 1 + rows
    assert found["stored"] == {"without metadata, frame stored before its action": 2} and not found["has_action_table"]


def test_play_stored_after_its_action_as_gamengen_repro_has_it_is_paired_anew(recorded: Path, tmp_path: Path) -> None:
    """Row t holds action t and the frame it led to; a `health` column tells. Shifted data of that kind is found too."""

    def after(table: pa.Table) -> pa.Table:
        rows = len(table) - 1
        columns = {"frames": table.column("frames").slice(1), "actions": table.column("actions").slice(0, rows)}
        return pa.table({**columns, "health": pa.array(np.full(rows, 100))})

    for rows in (0, 1):
        published = rewritten(shifted(recorded, tmp_path / f"shifted{rows}", rows), tmp_path / f"after{rows}", after)
        code, found = check(published, tmp_path)
        assert (code, found["alignment"]["lead"]) == (rows, 1 + rows)
        assert found["stored"] == {"without metadata, frame stored after its action": 2}


def test_a_single_shifted_file_is_named(recorded: Path, tmp_path: Path) -> None:
    mixed = rewritten(recorded, tmp_path / "mixed", lambda table: table)
    last = sorted(mixed.rglob("*.parquet"))[-1]
    odd = sorted(shifted(recorded, tmp_path / "shifted", 2).rglob("*.parquet"))[-1]
    last.write_bytes(odd.read_bytes())
    for number in range(2):  # the good play is in the majority
        (last.parent / f"episode_9{number}.parquet").write_bytes(sorted(mixed.rglob("*.parquet"))[0].read_bytes())
    _, found = check(mixed, tmp_path)
    assert found["alignment"]["lead"] == 1 and found["alignment"]["files_that_differ"] == {str(last): 3}
    assert last.name in found["verdict"]


def test_it_says_so_where_it_cannot_tell(tmp_path: Path) -> None:
    write_episode(tmp_path / "a/episode_0.parquet", [0] * 40 + [1] * 40)
    code, found = check(tmp_path / "a", tmp_path)
    assert code == 0 and found["alignment"]["lead"] is None
    assert "cannot be told: the keys change 1 times, 20 are needed" in found["verdict"]
    noise = np.random.default_rng(0).integers(0, 255, (100, 12, 16, 3), dtype=np.uint8)  # answers to nothing
    write_episode(tmp_path / "b/episode_0.parquet", np.arange(100) // 4 % 3, frames=list(noise))
    assert check(tmp_path / "b", tmp_path)[1]["alignment"]["lead"] is None


def world(actions: np.ndarray, lead: int, turning: bool) -> np.ndarray:
    """Bands (T, 8, 64) of a picture that a game of 0 rest, 1 left, 2 right draws `lead` rows after the key."""
    rng = np.random.default_rng(3)
    wall = np.convolve(rng.normal(size=400), np.ones(5) / 5, "same") * 100
    late = np.concatenate([np.zeros(lead, dtype=int), actions[: len(actions) - lead]])  # leads to this very picture
    steps = np.select([late == 1, late == 2], [2, -2], 0)
    places = 200 - np.cumsum(steps) % 100
    if turning:
        return np.stack([np.tile(wall[place : place + 64], (8, 1)) for place in places])
    light = np.cumsum(np.where(late == 1, 40.0, 0.0))  # a press makes it brighter, nothing moves
    return np.tile(wall[:64], (8, 1))[None] + light[:, None, None]


@pytest.mark.parametrize("turning", [True, False])
@pytest.mark.parametrize("lead", [1, 2, 5])
def test_the_lead_of_a_made_up_world_is_the_one_it_was_made_with(lead: int, turning: bool) -> None:
    actions = np.repeat(np.random.default_rng(1).integers(0, 3, 100), 4)
    play = Play.of(0, actions, world(actions, lead, turning))
    found = estimate_lead([play], {1: 1, 2: -1} if turning else None)
    assert found.lead == lead and found.confidence >= 0.9
    assert found.method.startswith("sideways" if turning else "change")
    assert set(found.correlations) == set(LEADS.tolist())


def test_sideways_shift_is_to_the_right_and_to_a_fraction_of_a_column() -> None:
    wall = np.convolve(np.random.default_rng(5).normal(size=1000), np.ones(9) / 9, "same")
    bands = np.stack(
        [
            np.stack([np.interp(np.arange(96) - place + 100 * band + 50, np.arange(1000), wall) for band in range(8)])
            for place in (0, 3, 3, -1, -0.5)
        ]
    )
    assert sideways_shift(bands) == pytest.approx([3, 0, -4, 0.5], abs=0.3)


# ------------------------------------------------------------------------------------------------ latents


def test_latents_are_checked_by_their_own_pictures(recorded: Path, tmp_path: Path) -> None:
    """Moments that a person can see: each cell is the mean grey of its block of pixels."""
    for rows in (0, 2):
        for number, path in enumerate(find_episodes(recorded)):
            episode = Episode(path)
            grey = episode.read_frames(range(TICS)).mean(axis=3)  # (T, 120, 160)
            cells = grey.reshape(TICS, 15, 8, 40, 4).mean(axis=(2, 4)) / 64 - 2  # (T, 15, 40)
            moments = torch.from_numpy(cells)[:, None].repeat(1, 2, 1, 1).half()
            facts = {"tics_per_row": 1, "tics_per_second": 35.0, "action_table": episode.info.action_table}
            actions = torch.from_numpy(np.roll(episode.actions, -rows))
            save_latents(tmp_path / f"{rows}/latent_episode_{number}.pt", moments, facts, actions=actions)
        code, found = check(tmp_path / str(rows), tmp_path)
        assert (code, found["kind"], found["alignment"]["lead"]) == (int(rows > 0), "latents", 1 + rows)


# ------------------------------------------------------------------------------------------------ what is broken


def test_broken_files_are_named_and_the_others_counted(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for number in range(3):
        write_episode(folder / f"episode_{number}.parquet", [0, 1, 2, 3] * 10)
    write_episode(folder / "episode_cut.parquet", [0, 1, 2, 3] * 10)
    path = folder / "episode_cut.parquet"
    path.write_bytes(path.read_bytes()[:500])
    write_episode(folder / "episode_large.parquet", [0, 1], width=32, height=24)
    table = pq.read_table(write_episode(folder / "episode_picture.parquet", [0, 1, 2, 3]))
    frames = table.column("frames").to_pylist()
    frames[2] = b"no picture"
    pq.write_table(table.set_column(0, "frames", pa.array(frames)), folder / "episode_picture.parquet")
    done = run_script("check_data.py", folder, "--json", tmp_path / "check.json")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    found = json.loads((tmp_path / "check.json").read_text())
    broken = {Path(name).name: reason for name, reason in found["broken"].items()}
    assert set(broken) == {"episode_cut.parquet", "episode_large.parquet", "episode_picture.parquet"}
    assert "not a complete parquet file" in broken["episode_cut.parquet"]
    assert "frames are 32x24, but 16x12" in broken["episode_large.parquet"]
    assert broken["episode_picture.parquet"] == "the frame of row 2 is not a readable picture"
    assert (found["files"], found["games"], found["frames"]) == (6, 3, 120)
    assert [row["frames"] for row in found["actions"]] == [30, 30, 30, 30]
    assert done.stdout.splitlines()[-1].startswith("verdict: 3 of 6 files are broken")


def test_unused_actions_are_named_and_games_counted(tmp_path: Path) -> None:
    write_episode(tmp_path / "a/episode_0.parquet", [0, 2, 2, 0])
    found = check(tmp_path / "a", tmp_path)[1]
    assert [row["name"] for row in found["actions"]] == ["no-op", "right"]
    assert [row["name"] for row in found["unused"]] == ["left", "attack"]
    games = [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    write_episode(tmp_path / "b/train-0.parquet", range(10), legacy="after", games=games, as_struct=True)
    found = check(tmp_path / "b", tmp_path)[1]
    assert (found["games"], found["frames"]) == (2, 8)
    assert found["stored"] == {"without metadata, frame stored after its action": 1}


def test_a_path_without_data_is_refused_in_one_line(tmp_path: Path) -> None:
    for path, said in ((tmp_path, "no .parquet and no .pt files in it"), (tmp_path / "none", "no such file or folder")):
        done = run_script("check_data.py", path)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr


@pytest.mark.parametrize("quota", [None, 100, 5000])
def test_what_is_looked_at_lies_within_games_and_keeps_to_its_share(quota: int | None) -> None:
    starts, rows = np.array([0, 300, 310]), 4000
    pieces = list(stretches(starts, rows, quota))
    for piece in pieces:
        assert (np.diff(piece) == 1).all()
        assert len(set(np.searchsorted(starts, piece, side="right"))) == 1
    looked_at = np.concatenate(pieces)
    assert len(set(looked_at)) == len(looked_at)
    assert len(looked_at) == rows if quota in (None, 5000) else quota <= len(looked_at) <= quota + 10
