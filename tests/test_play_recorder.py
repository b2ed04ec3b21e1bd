"""Promises of the recorder: a person's play of the real game, and of the dream, is data to check and to train on."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
from actions import table_rows
from command import succeed
from doom_env import DoomEnv
from tiny_models import saved, tiny_autoencoder, tiny_world_model
from toy_world import moved, picture

from check_data import main as check
from episodes import Episode, find_episodes
from play_recorder import Game, PlayRecorder

TICS_PER_ROW = 4


def finished(recorder: PlayRecorder) -> None:
    """Waits until the files are whole; nothing went wrong."""
    errors: list[Exception | None] = []
    recorder.finish(errors.append).result(120)
    assert errors == [None], errors


def film(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams.video[0])]


def played_by_hand(folder: Path, seed: int) -> tuple[PlayRecorder, list[int], list[np.ndarray]]:
    """The real game, its keys held as a person does: (recorder, actions, the frame on which each was chosen)."""
    env = DoomEnv(screen_resolution="RES_160X120", tics_per_step=TICS_PER_ROW, bots=0)
    env.reset(seed=seed)
    ids = {action.name: action.id for action in env.actions}
    game = Game("real", env.scenario_name, table_rows(env.actions), float(env.tics_per_second), TICS_PER_ROW, seed)
    recorder = PlayRecorder(folder, game, env.render(), has_episode=True)
    frames, actions = [], []
    for name in ("TURN_LEFT", "NOOP", "TURN_RIGHT", "MOVE_FORWARD", "TURN_RIGHT", "NOOP") * 8:
        for _ in range(2):
            frames.append(env.render())
            actions.append(ids[name])
            env.step(ids[name])
            assert recorder.add(env.render(), ids[name])
    env.close()
    finished(recorder)
    return recorder, actions, frames


@pytest.mark.slow
def test_a_persons_play_of_the_real_game_is_sound_and_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from check_data import build_parser

    recorder, actions, frames = played_by_hand(tmp_path, seed=3)
    episode = Episode(recorder.episode)
    assert episode.actions.tolist() == actions
    rows = [0, 1, 50, len(actions) - 1]
    error = np.abs(episode.read_frames(rows).astype(int) - np.stack([frames[row] for row in rows]))
    assert error.mean() < 5  # JPEG
    assert (episode.info.tics_per_row, episode.info.tics_per_second) == (TICS_PER_ROW, 35)
    assert len(film(recorder.film)) == len(actions) + 1
    notes = json.loads(recorder.film.with_suffix(".json").read_text())
    assert (notes["game"], notes["actions"], notes["frames_per_second"]) == ("real", actions, 8.75)

    other, _, _ = played_by_hand(tmp_path, seed=4)
    assert find_episodes(tmp_path / "real") == sorted([recorder.episode, other.episode])
    check(build_parser().parse_args([str(tmp_path / "real")]))  # exits with another code than 0 where it is not sound
    assert "verdict: aligned: actions[t] leads to frames[t+1]" in capsys.readouterr().out

    autoencoder = saved(tiny_autoencoder(), tmp_path / "autoencoder")
    succeed(
        "train_text_to_image.py",
        *("--dataset_basepath", tmp_path / "real", "--output_dir", tmp_path / "run", "--preset", "smoke"),
        *("--from_pixels", "--vae_folder_or_id", autoencoder, "--frame_stride", TICS_PER_ROW, "--max_train_steps", 1),
        *("--train_batch_size", 2, "--num_validation_windows", 2, "--report_to", "none", "--device", "cpu"),
        *("--dataloader_num_workers", 0),
    )
    assert (tmp_path / "run" / "world_model" / "config.json").is_file()


def test_a_recorded_dream_lies_apart_and_one_without_a_window_to_train_on_is_a_film_only(tmp_path: Path) -> None:
    config = tiny_world_model().config  # ten frames a second
    for actions in ([1], [2, 0, 1, 1] * 3):
        x = 20
        recorder = PlayRecorder(tmp_path, Game.dream(config), picture(x), has_episode=True)
        for action in actions:
            x = moved(x, action)
            assert recorder.add(picture(x), action)
        finished(recorder)
        assert len(film(recorder.film)) == len(actions) + 1
        assert (recorder.episode is None) == (len(actions) < 2)
    (path,) = find_episodes(tmp_path / "dream")
    assert not list(tmp_path.glob("dream/*/*/*.partial*")) and len(list(tmp_path.glob("dream/*/*"))) == 1
    episode = Episode(path)
    assert episode.actions.tolist() == actions and episode.info.metadata["scenario"] == "dream of smoke"
    assert np.abs(episode.read_frames([0])[0].astype(int) - picture(20)).mean() < 8
