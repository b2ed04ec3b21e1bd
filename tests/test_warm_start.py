"""Promises of training on from a finished world model: nothing of it is lost, and what does not fit is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from command import succeed
from hub_server import local_hub
from safetensors.torch import load_file
from small_runs import (
    call,
    changed_words,
    episodes,
    logged,
    world_model_run,
    world_model_words,
    write_play,
)
from test_command_lines import quick_refusal
from tiny_models import ACTION_TABLE, saved, tiny_autoencoder, tiny_preset, tiny_world_model
from torch import nn

from command_line import BadInput
from metrics import ROWS
from model import build_world_model, load_autoencoder, load_world_model
from model_folders import preset_of_world_model
from presets import get_preset

TRAIN = "train_text_to_image.py"
OPTIONS = {"predicts_change": True, "sampler_steps": 4}
WEIGHTS = ("unet/diffusion_pytorch_model", "action_embedding_model", "action_positions")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world model that nothing of a preset's defaults describes: stride 1, actions beside the time, and rounded."""
    loaded = tiny_world_model(**OPTIONS, num_inference_steps=4, guidance_scale=1.5, trained_steps=7)
    torch.manual_seed(1)
    preset = dataclasses.replace(tiny_preset(), conditions_on_actions=True, predicts_change=True)
    loaded.world_model = build_world_model(preset, len(ACTION_TABLE)).requires_grad_(False)
    nn.init.normal_(loaded.world_model.unet.conv_out.weight, std=0.1)
    for weight in loaded.world_model.parameters():
        weight.copy_(weight.half())
    folder = tmp_path_factory.mktemp("finished") / "world_model"
    loaded.save(folder)
    return folder


def words_of(base: Path, output_dir: Path, source: object, **flags: object) -> tuple[object, ...]:
    """train_text_to_image.py on `random_latents`, from `source`, one step, whose rate is zero for warming up."""
    own = {"preset": None, "frame_stride": None, "pretrained_model_name_or_path": source, "max_train_steps": 1}
    return changed_words(world_model_words(base, output_dir), **{**own, **flags})


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {f"{file} {name}": x for file in WEIGHTS for name, x in load_file(folder / f"{file}.safetensors").items()}


def test_a_step_of_rate_zero_leaves_the_model_as_it_was_with_all_that_it_says_of_itself(
    base: Path, finished: Path, tmp_path: Path
) -> None:
    said = succeed(TRAIN, *words_of(base, tmp_path / "run", finished))
    assert "\npreset: smoke\n" in said and "\nframe_stride: 1\n" in said
    before, after = weights_of(finished), weights_of(tmp_path / "run" / "world_model")
    assert set(before) == set(after)
    assert all(before[name].dtype == after[name].dtype == torch.float16 for name in before if "unet" in name)
    assert all(before[name].equal(after[name]) for name in before)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (finished, tmp_path / "run/world_model")]
    assert [config.pop("trained_steps") for config in configs] == [7, 8]
    assert configs[0] == configs[1]
    rows = [line for line in logged(tmp_path / "run") if "model_psnr_db" in line]
    assert [line["step"] for line in rows] == [0, 1]  # the model is measured as it comes, to be compared with
    assert all(rows[0][f"{name}_psnr_db"] == rows[1][f"{name}_psnr_db"] for name in ROWS)


def test_the_run_learns_with_every_weight_and_goes_on_where_it_stopped(
    base: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"max_train_steps": 2, "lr_warmup_steps": 0, "checkpointing_steps": 1}
    words = words_of(base, tmp_path / "run", finished, **flags)
    call(TRAIN, *words)
    trained = load_file(tmp_path / "run/checkpoint-2/model.safetensors")
    loaded = dict(load_world_model(finished).world_model.named_parameters())
    moved = {name for name, weight in loaded.items() if not trained[name].equal(weight)}
    assert set(trained) == set(loaded) and "action_positions" in moved and "unet.conv_in.weight" in moved
    assert set(loaded) - moved <= {"unet.class_embedding.weight"}  # a bucket that no window drew
    (tmp_path / "run/checkpoint-2").rename(tmp_path / "first")
    call(TRAIN, *words)
    assert f"resumed from {tmp_path}/run/checkpoint-1\n" in capsys.readouterr().out
    for name in ("model", "ema", "optimizer"):
        again = tmp_path / f"run/checkpoint-2/{name}.safetensors"
        assert again.read_bytes() == (tmp_path / f"first/{name}.safetensors").read_bytes()
    assert [line["step"] for line in logged(tmp_path / "run") if "model_psnr_db" in line] == [0, 2]


def test_a_run_folder_names_its_model_and_from_pixels_its_autoencoder_too(base: Path, tmp_path: Path) -> None:
    run = world_model_run(base)
    words = words_of(base, tmp_path / "run", run.folder, dataset_basepath=episodes(base))
    call(TRAIN, *words, "--from_pixels")
    before, after = (weights_of(folder / "world_model") for folder in (run.folder, tmp_path / "run"))
    assert all(before[name].equal(after[name]) for name in before)


def test_a_model_on_the_hub_is_fetched_whole(base: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "hub/models/owner/dream")
    with local_hub(tmp_path / "hub") as hub:
        words = words_of(base, tmp_path / "run", "owner/dream", dataset_basepath=episodes(base))
        succeed(TRAIN, *words, "--from_pixels", extra=hub.environment(tmp_path / "home"))
    before, after = weights_of(finished), weights_of(tmp_path / "run" / "world_model")
    assert all(before[name].equal(after[name]) for name in before)


def test_encoding_and_decoder_tuning_take_the_models_own_autoencoder(finished: Path, tmp_path: Path) -> None:
    for number in range(2):
        write_play(tmp_path / f"play/episode_{number:06d}.parquet", 12, seed=number)
    data = ("--dataset_basepath", tmp_path / "play", "--model_folder_or_id", finished, "--device", "cpu")
    call("encode_images.py", *data, "--save_dir_path", tmp_path / "latents", "--dataloader_num_workers", 0)
    words = ("--output_dir", tmp_path / "decoder", "--max_train_steps", 1, "--report_to", "none")
    call("finetune_vae.py", *data, *words, "--num_validation_frames", 2, "--dataloader_num_workers", 0)
    expected = load_world_model(finished).config.encoder_sha256
    assert load_autoencoder(tmp_path / "latents").encoder_sha256 == expected
    assert load_world_model(finished, vae_folder_or_id=tmp_path / "decoder").config.encoder_sha256 == expected


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ({"context_length": 8}, {}, "was trained with context_length 4, not 8; leave out --preset and --frame_stride"),
        ({"latent_channels": 8}, {}, "latent_channels 4, not 8"),
        ({"frame_width": 70}, {}, "frame_width 80, not 70"),
        ({"predicts_change": False}, {}, "predicts_change True, not False"),
        ({"conditions_on_actions": False}, {}, "conditions_on_actions True, not False"),
        ({"sampler_steps": None}, {}, "sampler_steps 4, not None"),
        ({}, {"frame_stride": 2}, "frame_stride 1, not 2"),
        (None, {"frame_stride": 2}, "frame_stride 1, not 2"),
    ],
)
def test_a_preset_that_is_not_the_models_is_refused(
    changes: dict | None, flags: dict, message: str, base: Path, finished: Path, tmp_path: Path
) -> None:
    own = {**OPTIONS, "conditions_on_actions": True, "frame_stride": 1}
    if changes is not None:
        (tmp_path / "mine.json").write_text(json.dumps({"base": "smoke", **own, **changes}))
        flags = {**flags, "preset": tmp_path / "mine.json"}
    with pytest.raises(BadInput, match=message):
        call(TRAIN, *words_of(base, tmp_path / "run", finished, **flags))
    assert not (tmp_path / "run").exists()


def test_a_preset_file_is_named_where_the_model_came_of_one(base: Path, tmp_path: Path) -> None:
    geometry = dataclasses.replace(tiny_autoencoder().geometry, preset="mine")
    tiny_world_model(geometry=geometry).save(tmp_path / "model")
    line = quick_refusal(TRAIN, *words_of(base, tmp_path / "run", tmp_path / "model"))
    assert "was trained with the preset file mine.json; name that file with --preset" in line
    (tmp_path / "mine.json").write_text(json.dumps({"base": "smoke", "frame_stride": 1}))
    call(TRAIN, *words_of(base, tmp_path / "run", tmp_path / "model", preset=tmp_path / "mine.json"))
    assert load_world_model(tmp_path / "run").config.geometry.preset == "mine"


def test_the_presets_own_fields_come_from_the_model_rates_from_its_name(finished: Path) -> None:
    preset, named = preset_of_world_model(finished), get_preset("smoke")
    assert (preset.frame_stride, preset.num_inference_steps, preset.guidance_scale) == (1, 4, 1.5)
    assert (preset.learning_rate, preset.train_batch_size) == (named.learning_rate, named.train_batch_size)
    told = {"frame_stride": 1, "num_inference_steps": 4, "guidance_scale": 1.5, "conditions_on_actions": True}
    assert preset == dataclasses.replace(named, **OPTIONS, **told)


def test_data_of_another_encoder_or_game_is_refused(base: Path, finished: Path, tmp_path: Path) -> None:
    other = tiny_world_model(action_table=tuple({**row, "name": row["name"].lower()} for row in ACTION_TABLE))
    other.save(tmp_path / "game")
    with pytest.raises(BadInput, match=r"its action table is not the one .*/game was trained with"):
        call(TRAIN, *words_of(base, tmp_path / "run", tmp_path / "game"))
    stranger = tiny_world_model()
    stranger.autoencoder = tiny_autoencoder(seed=5)
    stranger.config = dataclasses.replace(stranger.config, encoder_sha256=stranger.autoencoder.encoder_sha256)
    stranger.save(tmp_path / "stranger")
    with pytest.raises(BadInput, match=r"latents of encoder .* again with encode_images.py --model_folder_or_id"):
        call(TRAIN, *words_of(base, tmp_path / "run", tmp_path / "stranger"))
    named = words_of(
        base, tmp_path / "run", finished, dataset_basepath=episodes(base),
        vae_folder_or_id=saved(tiny_autoencoder(seed=5), tmp_path / "autoencoder"),
    )  # fmt: skip
    with pytest.raises(BadInput, match="its encoder .* is not the one"):
        call(TRAIN, *named, "--from_pixels")


def test_a_broken_world_model_is_refused_at_once_by_name(base: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "model")
    (tmp_path / "model" / "action_embedding_model.safetensors").unlink()
    line = quick_refusal(TRAIN, *words_of(base, tmp_path / "run", tmp_path / "model"))
    assert "not a world-model folder (no action_embedding_model.safetensors)" in line
    assert not (tmp_path / "run").exists()
