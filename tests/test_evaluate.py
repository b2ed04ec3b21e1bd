"""Promises of evaluate.py through its real command line: the figures, their goals, going on, and what it refuses."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command import refusal, succeed
from small_runs import call, world_model_run, write_play
from tiny_models import NOOP, Recorder, tiny_world_model

from data_loader import WindowDataset, evenly
from engine import GameEngine
from evaluate import divide
from evaluate_report import Goal, goals
from held_out_measures import followed, places, rollouts
from metrics import ROWS, psnr
from validation import one_step_rows, training_mean

SCRIPT = "evaluate.py"
ROWS_OF_PLAY = 24
SHORT, LONG = 6, 40  # frames of rollouts; no recording is as long as the second
FLAGS = ("--num_windows", 8, "--rollout_frames", SHORT, LONG, "--num_rollouts", 3, 2, "--device", "cpu")
FLAGS += ("--backend", "torch")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An episode to train on and three held out."""
    folder = tmp_path_factory.mktemp("play")
    write_play(folder / "train/level_0/random/episode_000000.parquet", ROWS_OF_PLAY, seed=0)
    for number in range(3):
        write_play(folder / f"eval/level_0/random/episode_{number:06d}.parquet", ROWS_OF_PLAY, seed=9 + number)
    return folder


@pytest.fixture(scope="module")
def evaluated(base: Path, play: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A whole evaluation by the command line."""
    out = tmp_path_factory.mktemp("evaluation")
    words = ("--model_folder", world_model_run(base).folder, "--episodes", play, "--output_folder", out, *FLAGS)
    stdout = succeed(SCRIPT, *words)
    return SimpleNamespace(
        out=out, words=words, stdout=stdout, result=json.loads((out / "evaluation.json").read_text())
    )


def held_out(play: Path, **changes: object) -> WindowDataset:
    settings = {"context_length": 4, "frame_stride": 1, "kind": "frames", **changes}
    return WindowDataset(sorted((play / "eval").rglob("*.parquet")), **settings)


def test_one_step_is_what_validation_measures_at_each_number_of_steps(
    base: Path, play: Path, evaluated: SimpleNamespace
) -> None:
    dataset = held_out(play)
    train = WindowDataset([*(play / "train").rglob("*.parquet")], context_length=4, frame_stride=1, kind="frames")
    assert list(evaluated.result["pieces"]["one_step"]) == ["1", "2", "4"]
    for steps in (1, 4):
        engine = GameEngine.from_pretrained(world_model_run(base).folder, num_inference_steps=steps)
        constant = training_mean(train, engine.autoencoder)
        expected = one_step_rows(engine, dataset, evenly(len(dataset), 8), constant)
        measured = evaluated.result["pieces"]["one_step"][str(steps)]["rows"]
        assert list(measured) == list(ROWS)
        for row in ROWS:
            assert measured[row] == pytest.approx(expected[row], rel=1e-3), row


def test_every_length_of_rollout_has_its_rows_and_its_distance(evaluated: SimpleNamespace) -> None:
    pieces = evaluated.result["pieces"]
    assert list(pieces) == ["ceiling", "one_step", f"rollouts_of_{SHORT}", f"rollouts_of_{LONG}", "obedience"]
    for length, number in ((SHORT, 3), (LONG, 2)):
        piece = pieces[f"rollouts_of_{length}"]
        assert (piece["frames"], piece["rollouts"]) == (length, number)
        assert piece["recorded_frames"] == (SHORT if length == SHORT else pytest.approx(20, abs=5))
        assert {name: len(values) for name, values in piece["psnr_by_frame"].items()} == dict.fromkeys(
            ROWS, piece["recorded_frames"]
        )
        assert piece["detail_to_ceiling"] == pytest.approx(piece["detail"]["model"] / piece["detail"]["ceiling"])
        frechet = piece["frechet"]
        assert frechet["ratio"] == pytest.approx(frechet["model"] / frechet["real"])
        assert frechet["model"] > frechet["real"] > 0  # a model of random weights is no game
        assert frechet["vectors"] == number * piece["recorded_frames"]
    assert "again and again" in evaluated.stdout


def test_what_the_game_has_no_keys_for_is_said_and_not_measured(evaluated: SimpleNamespace) -> None:
    assert (
        "no action of this game presses only TURN_LEFT" in evaluated.result["pieces"]["obedience"]["turning"]["missing"]
    )
    unmeasured = [goal["name"] for goal in evaluated.result["goals"] if goal["is_reached"] is None]
    assert any("left and right" in name for name in unmeasured)
    lines = evaluated.stdout.splitlines()
    assert next(line for line in lines if line.startswith("autoencoder ceiling, dB")).endswith("missed")
    assert lines[-1].startswith(f"wrote {evaluated.out}/evaluation.json; next: python play.py --model_folder ")


def test_the_same_command_goes_on_where_it_stopped_and_ends_with_the_same_figures(
    base: Path, play: Path, evaluated: SimpleNamespace, tmp_path: Path
) -> None:
    assert "already_measured: ceiling one_step" in succeed(SCRIPT, *evaluated.words)
    words = ["--model_folder", world_model_run(base).folder, "--episodes", play, "--output_folder", tmp_path, *FLAGS]
    call(SCRIPT, *words, "--pieces", "one_step", "rollouts")
    path = tmp_path / "evaluation.json"
    assert sorted(json.loads(path.read_text())["pieces"]) == ["one_step", f"rollouts_of_{LONG}", f"rollouts_of_{SHORT}"]
    kept = json.loads(path.read_text())
    kept["pieces"]["one_step"]["1"]["gap_closed"] = 0.125  # a mark: what is there is not measured again
    path.write_text(json.dumps(kept))
    call(SCRIPT, *words)
    result = json.loads(path.read_text())["pieces"]
    assert result["one_step"]["1"].pop("gap_closed") == 0.125
    expected = json.loads(json.dumps(evaluated.result["pieces"]))
    expected["one_step"]["1"].pop("gap_closed")
    for name, piece in expected.items():
        assert np.allclose(numbers(result[name]), numbers(piece), rtol=1e-3), name


def numbers(value: object) -> list[float]:
    """All numbers inside a JSON value, those of a key before those of the next."""
    if isinstance(value, dict):
        return [number for key in sorted(value) for number in numbers(value[key])]
    if isinstance(value, list):
        return [number for each in value for number in numbers(each)]
    return [float(value)] if isinstance(value, int | float) else []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--num_windows", 9), ("num_windows 8", "this run has 9", "--output_folder")),
        (("--rollout_frames", 6, 6), ("--rollout_frames 6 6", "once")),
        (("--num_rollouts", 1, 2, 3), ("--num_rollouts 1 2 3", "--rollout_frames")),
        (("--episodes", "nowhere"), ("nowhere is not a folder", "load_model_generate_dataset.py")),
        (("--model_folder", "/nowhere/model"), ("/nowhere/model",)),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    evaluated: SimpleNamespace, flags: tuple, words: tuple[str, ...]
) -> None:
    before = (evaluated.out / "evaluation.json").read_bytes()
    line = refusal(SCRIPT, *evaluated.words, *flags)
    assert all(word in line for word in words), line
    assert (evaluated.out / "evaluation.json").read_bytes() == before


# ------------------------------------------------------------------------------------------------ parts


def test_a_folder_within_eval_is_all_held_out(tmp_path: Path) -> None:
    train, held = (tmp_path / name / "level_0/episode_000000.parquet" for name in ("train", "eval"))
    assert divide([train, held]) == ([train], [held])
    assert divide([held]) == ([], [held])
    assert divide([train]) == ([], [train])


def test_frames_that_follow_a_window_are_counted_to_the_end_of_its_stretch() -> None:
    targets = np.array([3, 4, 5, 6, 7, 9, 11])
    assert followed(targets, 1).tolist() == [5, 4, 3, 2, 1, 1, 1]
    assert followed(targets, 2).tolist() == [5, 2, 4, 1, 3, 2, 1]


def test_rollouts_begin_where_enough_was_recorded_or_take_the_most_there_is(play: Path) -> None:
    dataset = held_out(play)
    indices, recorded = places(dataset, [1], 10, 3)
    assert recorded == 10 and len(set(indices)) == 3
    for index in indices:
        stretch = dataset.stretch(index, 10)
        assert stretch["episode"] == 1 and stretch["rows"][0] >= 0
    indices, recorded = places(dataset, [0, 2], 10_000, 2)
    assert 10 <= recorded < ROWS_OF_PLAY
    assert all(dataset.stretch(index, recorded) for index in indices)


def test_a_rollout_longer_than_its_recording_plays_the_recorded_actions_again(play: Path) -> None:
    dataset, engine = held_out(play), GameEngine(tiny_world_model())
    recorder = Recorder(engine.world_model)
    constant = np.zeros((60, 80, 3), np.uint8)
    piece = rollouts(engine, dataset, LONG, 1, constant, 0, lambda frames: None)
    recorded = piece["recorded_frames"]
    index = places(dataset, [1], LONG, 1)[0][0]
    stretch = dataset.stretch(index, recorded)
    actions = stretch["actions"][3:].tolist()
    expected = [actions[frame % recorded] for frame in range(LONG)]
    assert len(set(actions)) > 1 and NOOP in actions
    assert [each.actions[0, -1].item() for each in recorder.calls[:: engine.num_inference_steps]] == expected
    real = engine.autoencoder.resize_frames(stretch["frames"][3:]).numpy()
    copied = psnr(np.repeat(real[:1], recorded, axis=0), real[1:])
    assert piece["psnr_by_frame"]["copy_last"] == pytest.approx(copied)
    ceiling = psnr(engine.autoencoder.reconstruct(real[1:]), real[1:])
    assert piece["psnr_by_frame"]["ceiling"] == pytest.approx(ceiling, abs=0.01)


def test_a_goal_is_reached_between_its_bounds_and_undecided_without_a_value() -> None:
    assert [Goal("x", value, 0.8, 1.25).is_reached for value in (0.79, 0.8, 1.25, 1.26)] == [False, True, True, False]
    assert Goal("x", None, least=1).is_reached is None
    rows = {"copy_last": (20, 1), "constant": (19, 0.5), "ceiling": (30, 0.5), "model": (27, 0.45)}
    rows = {name: {"psnr_db": db, "detail": detail} for name, (db, detail) in rows.items()}
    pieces = {"one_step": {"4": {"rows": rows, "gap_closed": 0.7}}}
    found = {goal.name: goal for goal in goals(pieces)}
    assert found["one step, 4 sampling steps: share of the gap closed"].is_reached
    assert found["one step, 4 sampling steps: detail, of the ceiling's"].value == pytest.approx(0.9)
