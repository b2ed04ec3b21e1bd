"""Promises of run_autoregressive.py: the film and the figures it writes, what its flags mean, what it refuses."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command import succeed
from PIL import Image
from small_runs import ROWS as EPISODE_ROWS
from small_runs import (
    call,
    episodes,
    random_latents,
    world_model_run,
    write_play,
)
from tiny_models import ACTION_TABLE, NOOP, Recorder, saved, tiny_autoencoder, tiny_world_model

import engine as engine_module
from command_line import BadInput
from data_loader import WindowDataset
from engine import GameEngine
from episodes import Episode, find_episodes, find_latents
from metrics import ROWS, psnr
from pictures import CAPTION_HEIGHT_PX
from validation import read_stretches, roll_out

SCRIPT = "run_autoregressive.py"
LENGTH = 6


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="module")
def model(base: Path) -> Path:
    return world_model_run(base).folder


@pytest.fixture(scope="module")
def rolled_out(base: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Two rollouts from latents, through the command line."""
    out = tmp_path_factory.mktemp("rollouts")
    words = ("--dataset_basepath", random_latents(base), "--unet_model_folder", model, "--out", out, "--device", "cpu")
    stdout = succeed(SCRIPT, *words, "--num_episodes", 2, "--episode_length", LENGTH, "--seed", 3)
    return SimpleNamespace(out=out, stdout=stdout, report=json.loads((out / "rollouts.json").read_text()))


def roll(base: Path, model: Path, out: Path, *flags: object) -> dict:
    """A rollout in this process; the report it wrote. A dataset in `flags` counts."""
    words = ["--unet_model_folder", model, "--out", out, "--device", "cpu", "--episode_length", LENGTH]
    if "--dataset_basepath" not in flags:
        words += ["--dataset_basepath", random_latents(base)]
    call(SCRIPT, *words, *flags)
    return json.loads((out / "rollouts.json").read_text())


def held_out(base: Path) -> WindowDataset:
    return WindowDataset(find_latents(random_latents(base) / "eval"), context_length=4, frame_stride=1)


# ------------------------------------------------------------------------------------------------ what it writes


def test_every_frame_has_all_four_rows_and_the_means_are_theirs(rolled_out: SimpleNamespace) -> None:
    report = rolled_out.report
    assert [rollout["gif"] for rollout in report["rollouts"]] == ["rollout_0.gif", "rollout_1.gif"]
    frames = [frame for rollout in report["rollouts"] for frame in rollout["frames"]]
    assert len(frames) == 2 * LENGTH
    for name in ROWS:
        values = [frame[name]["psnr_db"] for frame in frames]
        assert all(set(frame[name]) == {"psnr_db", "detail"} for frame in frames)
        assert report["rows"][name]["psnr_db"] == pytest.approx(np.mean(values))
        assert f"{name:<10} {np.mean(values):>8.2f}" in rolled_out.stdout
    assert rolled_out.stdout.splitlines()[0].startswith("dataset_basepath: ")
    assert rolled_out.stdout.splitlines()[-1].startswith(f"wrote {rolled_out.out}/rollout_0.gif and ")
    assert report["settings"]["num_inference_steps"] == 2 and report["settings"]["guidance_scale"] == 1.0


def test_the_rollout_is_the_engines_on_held_out_play_led_by_the_recorded_actions(
    base: Path, model: Path, rolled_out: SimpleNamespace
) -> None:
    dataset, engine = held_out(base), GameEngine.from_pretrained(model)
    for number, rollout in enumerate(rolled_out.report["rollouts"]):
        index = rollout["window"]
        stretches = read_stretches(dataset, engine.autoencoder, [index], LENGTH)
        episode = Episode(find_episodes(episodes(base) / "eval")[0])
        target = index + 1  # every row of the episode but the first is a window's target
        assert rollout["actions"] == episode.actions[target - 1 : target - 1 + LENGTH].tolist()
        real = engine.autoencoder.resize_frames(episode.read_frames(np.arange(target, target + LENGTH))).numpy()
        dream = roll_out(engine, stretches, [3 + number])[0]
        expected = psnr(dream, real)
        assert [frame["model"]["psnr_db"] for frame in rollout["frames"]] == pytest.approx(expected, abs=0.05)
        last = engine.autoencoder.resize_frames(episode.read_frames([target - 1])).numpy()
        expected = psnr(last.repeat(LENGTH, axis=0), real)
        assert [frame["copy_last"]["psnr_db"] for frame in rollout["frames"]] == pytest.approx(expected)


@pytest.mark.parametrize("index", [0, 2, 9])
def test_each_dreamed_frame_follows_from_the_four_recorded_actions_before_it(base: Path, index: int) -> None:
    dataset, engine = held_out(base), GameEngine(tiny_world_model())
    stretches = read_stretches(dataset, engine.autoencoder, [index], LENGTH)
    recorder = Recorder(engine.world_model)
    dream = roll_out(engine, stretches, [0])
    assert dream.shape == (1, LENGTH, 60, 80, 3)
    recorded = Episode(find_episodes(episodes(base) / "eval")[0]).actions.tolist()
    history = [NOOP] * 4 + recorded  # before the game there was nothing to press
    seen = [call.actions[0].tolist() for call in recorder.calls[:: engine.num_inference_steps]]
    assert seen == [history[row + 1 : row + 5] for row in range(index, index + LENGTH)]  # frame row + 1 comes of these


def test_the_film_shows_the_real_game_on_the_left_at_the_models_speed(base: Path, rolled_out: SimpleNamespace) -> None:
    index = rolled_out.report["rollouts"][0]["window"]
    episode = Episode(find_episodes(episodes(base) / "eval")[0])
    with Image.open(rolled_out.out / "rollout_0.gif") as film:
        assert film.size == (2 * 2 * 80, 2 * 60 + 2 * CAPTION_HEIGHT_PX)
        durations = []
        for frame in range(film.n_frames):
            film.seek(frame)
            durations.append(film.info["duration"])
        film.seek(0)
        picture = np.asarray(film.convert("RGB"))[CAPTION_HEIGHT_PX:-CAPTION_HEIGHT_PX, :160].astype(int)
    assert sum(durations) == 100 * LENGTH  # ten frames a second
    real = Image.fromarray(episode.read_frames([index + 1])[0]).resize((160, 120), Image.Resampling.BILINEAR)
    assert np.abs(picture - np.asarray(real)).mean() < 8  # 256 colours, another way of enlarging


# ------------------------------------------------------------------------------------------------ flags


def test_the_seed_decides_places_and_noise(
    base: Path, model: Path, tmp_path: Path, rolled_out: SimpleNamespace
) -> None:
    again = roll(base, model, tmp_path / "again", "--num_episodes", 2, "--seed", 3)
    assert again["rollouts"] == rolled_out.report["rollouts"]
    other = roll(base, model, tmp_path / "other", "--num_episodes", 2, "--seed", 4)
    assert other["rollouts"] != again["rollouts"]


def test_starting_from_pixels_is_starting_from_latents(
    base: Path, model: Path, tmp_path: Path, rolled_out: SimpleNamespace
) -> None:
    flags = ("--num_episodes", 2, "--seed", 3, "--start_from_pixels", "--dataset_basepath", episodes(base))
    from_pixels = roll(base, model, tmp_path, *flags)
    for one, other in zip(from_pixels["rollouts"], rolled_out.report["rollouts"], strict=True):
        assert (one["window"], one["actions"]) == (other["window"], other["actions"])
        for row in ROWS:
            values = [[frame[row]["psnr_db"] for frame in each["frames"]] for each in (one, other)]
            assert values[0] == pytest.approx(values[1], abs=0.1)  # the stored ones are float16


def test_sampling_flags_reach_the_engine(
    base: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = engine_module.sample_next

    def spy(*args: object, **kwargs: object) -> torch.Tensor:
        calls.append((args[4].tolist(), kwargs["num_inference_steps"], kwargs["guidance_scale"]))
        return real(*args, **kwargs)

    monkeypatch.setattr(engine_module, "sample_next", spy)
    flags = ("--num_inference_steps", 3, "--guidance_scale", 1.5, "--discretized_noise_level", 4)
    report = roll(base, model, tmp_path, *flags)
    assert calls == [([4], 3, 1.5)] * LENGTH
    settings = report["settings"]
    assert (settings["num_inference_steps"], settings["guidance_scale"]) == (3, 1.5)


def test_a_tuned_decoder_draws_the_dream_and_the_ceiling(
    base: Path, model: Path, tmp_path: Path, rolled_out: SimpleNamespace
) -> None:
    tuned = tiny_autoencoder()
    for parameter in tuned.vae.decoder.parameters():
        parameter.zero_()  # draws one grey, whatever the latents
    folder = saved(tuned, tmp_path / "tuned")
    flags = ("--num_episodes", 2, "--seed", 3, "--vae_ft_model_folder", folder)
    report = roll(base, model, tmp_path / "out", *flags)
    rows, before = report["rows"], rolled_out.report["rows"]
    assert rows["ceiling"] == pytest.approx(rows["model"]) and rows["model"]["detail"] == 0
    assert rows["copy_last"] == before["copy_last"] and rows["constant"] == before["constant"]
    assert rows["ceiling"]["psnr_db"] != pytest.approx(before["ceiling"]["psnr_db"], abs=0.01)


# ------------------------------------------------------------------------------------------------ refusals


def refused(base: Path, model: Path, out: Path, match: str, *flags: object) -> None:
    with pytest.raises(BadInput, match=match):
        roll(base, model, out, *flags)
    assert not out.exists()


def test_what_cannot_be_rolled_out_is_refused_and_nothing_is_written(base: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    too_long = f"0 places with {EPISODE_ROWS} frames after them, 1 wanted"
    refused(base, model, out, too_long, "--episode_length", EPISODE_ROWS)
    refused(base, model, out, "discretized_noise_level 10: the model knows 0 to 9", "--discretized_noise_level", 10)
    stranger = saved(tiny_autoencoder(seed=1), tmp_path / "stranger")
    refused(base, model, out, "its encoder .* is not the one", "--vae_ft_model_folder", stranger)
    refused(base, stranger, out, "not a world-model folder")


def test_latents_of_another_encoder_are_refused(base: Path, model: Path, tmp_path: Path) -> None:
    latents = tmp_path / "latents"
    shutil.copytree(random_latents(base), latents)
    for path in [*find_latents(latents), latents / "latent_black.pt"]:
        stored = torch.load(path, weights_only=True)
        stored["metadata"]["encoder_sha256"] = "0" * 64
        torch.save(stored, path)
    refused(base, model, tmp_path / "out", "latents of encoder 000000000000, but", "--dataset_basepath", latents)


def test_a_game_with_actions_the_model_does_not_know_is_refused(base: Path, model: Path, tmp_path: Path) -> None:
    table = [*ACTION_TABLE, {"id": 3, "name": "UP", "buttons": ["w"], "keys": ["KeyW"]}]
    for number in range(2):
        write_play(tmp_path / f"play/episode_{number:06d}.parquet", 12, seed=number, action_table=table)
    flags = ("--dataset_basepath", tmp_path / "play", "--start_from_pixels")
    refused(base, model, tmp_path / "out", "its action table is not the one", *flags)


def test_an_action_table_that_disagrees_is_refused(base: Path, model: Path, tmp_path: Path) -> None:
    swapped = [
        {**row, "name": other["name"], "buttons": other["buttons"], "keys": other["keys"]}
        for row, other in zip(ACTION_TABLE, [ACTION_TABLE[0], *ACTION_TABLE[:0:-1]], strict=True)
    ]
    for number in range(2):
        write_play(tmp_path / f"play/episode_{number:06d}.parquet", 12, seed=number, action_table=swapped)
    flags = ("--dataset_basepath", tmp_path / "play", "--start_from_pixels")
    refused(base, model, tmp_path / "out", "its action table is not the one", *flags)


def test_rollouts_are_replaced_only_when_told_to(base: Path, model: Path, tmp_path: Path) -> None:
    roll(base, model, tmp_path / "out")
    with pytest.raises(BadInput, match="--overwrite"):
        roll(base, model, tmp_path / "out", "--seed", 1)
    assert roll(base, model, tmp_path / "out", "--seed", 1, "--overwrite")["settings"]["seed"] == 1


def test_a_decoder_folder_without_our_facts_takes_the_models_frame_size(
    base: Path, model: Path, tmp_path: Path
) -> None:
    decoder = tmp_path / "decoder"
    shutil.copytree(model / "world_model" / "vae", decoder)
    (decoder / "autoencoder_info.json").unlink()
    report = roll(base, model, tmp_path / "out", "--vae_ft_model_folder", decoder)
    plain = roll(base, model, tmp_path / "plain")
    assert report["rows"] == plain["rows"]


def test_latents_whose_episodes_are_gone_are_refused_with_the_cure(base: Path, model: Path, tmp_path: Path) -> None:
    latents = tmp_path / "latents"
    shutil.copytree(random_latents(base), latents)
    for path in find_latents(latents):
        stored = torch.load(path, weights_only=True)
        stored["metadata"]["source"] = str(tmp_path / "gone.parquet")
        torch.save(stored, path)
    refused(base, model, tmp_path / "out", "episodes .* are gone.*--start_from_pixels", "--dataset_basepath", latents)
