"""Promises of model.py: what the networks are given, what their folders keep, which folders are refused."""

import dataclasses
import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import (
    ACTION_TABLE,
    KL_GEOMETRY,
    LEFT,
    NOOP,
    RIGHT,
    kl_autoencoder,
    saved,
    tiny_autoencoder,
    tiny_world_model,
)
from torch import Tensor, nn

from command_line import BadInput
from model import (
    Autoencoder,
    Geometry,
    LoadedWorldModel,
    WorldModel,
    build_autoencoder,
    build_world_model,
    load_autoencoder,
    load_world_model,
)
from presets import get_preset

AUTOENCODERS = {"AutoencoderKL": kl_autoencoder, "AutoencoderTiny": tiny_autoencoder}


class Transparent(nn.Module):
    """Stands in for an `AutoencoderTiny` of 48 channels: what goes in comes out."""

    config = SimpleNamespace(in_channels=48, scaling_factor=2.0, latent_channels=48)
    dtype, device = torch.float32, torch.device("cpu")

    def encode(self, pixels: Tensor) -> SimpleNamespace:
        return SimpleNamespace(latents=pixels)

    def decode(self, latents: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=latents)


@pytest.fixture(params=sorted(AUTOENCODERS))
def autoencoder(request: pytest.FixtureRequest) -> Autoencoder:
    return AUTOENCODERS[request.param]()


@pytest.fixture(scope="module")
def world_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "world_model"
    tiny_world_model().save(folder)
    return folder


def random_frames(count: int, width: int, height: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def inputs(loaded: LoadedWorldModel, actions: list[list[int]], bucket: int = 0) -> tuple[Tensor, ...]:
    """One batch for the world model; the same latents for every row of actions."""
    generator = torch.Generator().manual_seed(1)
    shape = loaded.config.latent_shape
    noised = torch.randn(1, *shape, generator=generator).repeat(len(actions), 1, 1, 1)
    context = torch.randn(1, loaded.config.context_length, *shape, generator=generator)
    buckets = torch.full((len(actions),), bucket)
    timesteps = torch.full((len(actions),), 500)
    return noised, timesteps, context.repeat(len(actions), 1, 1, 1, 1), torch.tensor(actions), buckets


# ------------------------------------------------------------------------------------------------ frames and pixels


def test_black_frames_and_padding_become_minus_one_not_grey() -> None:
    pixels = tiny_autoencoder().frames_to_pixels(np.zeros((1, 60, 80, 3), np.uint8))
    assert pixels.shape == (1, 3, 64, 80)
    assert pixels.min() == pixels.max() == -1


def test_white_is_plus_one_and_padding_is_black_below_and_right() -> None:
    geometry = Geometry("test", frame_width=6, frame_height=5, padded_width=8, padded_height=8)
    pixels = Autoencoder(Transparent(), geometry).frames_to_pixels(np.full((1, 5, 6, 3), 255, np.uint8))
    assert pixels.shape == (1, 3, 8, 8)
    assert (pixels[:, :, :5, :6] == 1).all()
    assert (pixels[:, :, 5:] == -1).all() and (pixels[:, :, :, 6:] == -1).all()


def test_every_byte_survives_the_way_to_pixels_and_back_and_the_padding_is_cut() -> None:
    frames = np.arange(240, dtype=np.uint8).reshape(1, 5, 16, 3)
    geometry = Geometry("test", frame_width=16, frame_height=5, padded_width=16, padded_height=8)
    autoencoder = Autoencoder(Transparent(), geometry)
    assert np.array_equal(autoencoder.pixels_to_frames(autoencoder.frames_to_pixels(frames)).numpy(), frames)
    assert autoencoder.pixels_to_frames(torch.full((1, 3, 8, 16), 9.0)).unique().tolist() == [255]  # clamped


def test_larger_frames_are_averaged_down_and_equal_sizes_left_alone() -> None:
    autoencoder = tiny_autoencoder()
    checkers = np.zeros((1, 120, 160, 3), np.uint8)
    checkers[:, :, 1::2] = 200
    middle = autoencoder.resize_frames(checkers)[:, 2:-2, 2:-2]
    assert (middle.float() - 100).abs().max() <= 1  # antialiased: the mean, not one of the two
    frames = random_frames(2, 80, 60)
    assert np.array_equal(autoencoder.resize_frames(frames).numpy(), frames)


def test_pixel_unshuffle_takes_each_block_of_pixels_to_one_cell_and_back() -> None:
    autoencoder = Autoencoder(Transparent(), Geometry("test", 12, 8, 12, 8))
    pixels = torch.arange(2 * 3 * 8 * 12, dtype=torch.float32).reshape(2, 3, 8, 12)
    moments = autoencoder.encode_pixels(pixels)
    assert moments.shape == (2, 48, 2, 3)
    for row, column in [(0, 0), (1, 2)]:
        block = pixels[1, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        assert moments[1, :, row, column].tolist() == block.flatten().tolist()
    assert autoencoder.decode_latents(autoencoder.sample_latents(moments)).equal(pixels)


# ------------------------------------------------------------------------------------------------ moments and latents


def test_moments_and_latents_of_both_kinds(autoencoder: Autoencoder) -> None:
    width, height = autoencoder.frame_size
    pixels = autoencoder.frames_to_pixels(random_frames(2, width, height))
    with torch.no_grad():
        moments = autoencoder.encode_pixels(pixels)
        latents = autoencoder.sample_latents(moments)
        decoded = autoencoder.decode_latents(latents)
        if autoencoder.posterior == "gaussian":
            mode = autoencoder.vae.encode(pixels).latent_dist.mode()
            expected, plain = 0.18215 * mode, autoencoder.vae.decode(mode).sample
        else:
            codes = autoencoder.vae.encode(nn.functional.pixel_unshuffle(pixels, 4)).latents
            expected, plain = codes, nn.functional.pixel_shuffle(autoencoder.vae.decode(codes).sample, 4)
    channels = autoencoder.latent_channels
    assert moments.shape[1] == (2 * channels if autoencoder.posterior == "gaussian" else channels)
    assert torch.allclose(latents, expected)
    assert torch.allclose(decoded, plain, atol=1e-5)
    assert autoencoder.reconstruct(random_frames(3, width, height)).shape == (3, height, width, 3)


def test_posterior_samples_are_mean_plus_std_times_noise_then_scaled() -> None:
    autoencoder = kl_autoencoder()
    mean, std = 3.0, 0.5
    moments = torch.cat([torch.full((1, 4, 8, 8), mean), torch.full((1, 4, 8, 8), 2 * np.log(std))], dim=1)
    noise = torch.full((1, 4, 8, 8), -2.0)
    sampled = autoencoder.sample_latents(moments, noise)
    assert sampled.flatten().tolist() == pytest.approx([0.18215 * (3.0 - 2.0 * 0.5)] * 256)
    assert autoencoder.sample_latents(moments).flatten().tolist() == pytest.approx([0.18215 * 3.0] * 256)
    windows = moments.repeat(3, 1, 1, 1)[None]  # (1, 3, M, h, w): any number of leading axes
    assert autoencoder.sample_latents(windows, noise.repeat(3, 1, 1, 1)[None])[0, 1].equal(sampled[0])


def test_an_autoencoder_without_posterior_ignores_the_noise() -> None:
    moments = torch.randn(1, 4, 8, 10)
    tiny = tiny_autoencoder()
    tiny.vae.register_to_config(scaling_factor=2.0)
    assert tiny.sample_latents(moments, torch.randn(1, 4, 8, 10)).equal(2 * moments)


def test_black_moments_are_those_of_a_black_frame(autoencoder: Autoencoder) -> None:
    width, height = autoencoder.frame_size
    black, grey = (np.full((1, height, width, 3), value, np.uint8) for value in (0, 127))
    with torch.no_grad():
        of_black, of_grey = (autoencoder.encode_pixels(autoencoder.frames_to_pixels(x)) for x in (black, grey))
    assert torch.allclose(autoencoder.black_moments(), of_black, atol=1e-5)
    assert not torch.allclose(autoencoder.black_moments(), of_grey, atol=1e-3)


# ------------------------------------------------------------------------------------------------ the fingerprint


def test_the_fingerprint_changes_with_the_encoder_and_not_with_the_decoder(autoencoder: Autoencoder) -> None:
    before = autoencoder.encoder_sha256
    for name, parameter in autoencoder.vae.named_parameters():
        kept = parameter.clone()
        parameter.flatten()[0] += 1e-3
        is_decoder = name.startswith(("decoder.", "post_quant_conv."))
        assert (autoencoder.encoder_sha256 == before) is is_decoder, name
        parameter.copy_(kept)
    assert autoencoder.encoder_sha256 == before


def test_the_fingerprint_covers_scale_and_geometry_but_not_the_presets_name(autoencoder: Autoencoder) -> None:
    before = autoencoder.encoder_sha256
    geometry = autoencoder.geometry
    autoencoder.geometry = dataclasses.replace(geometry, preset="another name")
    assert autoencoder.encoder_sha256 == before
    autoencoder.geometry = dataclasses.replace(geometry, frame_height=geometry.frame_height - 1)
    assert autoencoder.encoder_sha256 != before
    autoencoder.geometry = geometry
    autoencoder.vae.register_to_config(scaling_factor=0.5)
    assert autoencoder.encoder_sha256 != before


def test_an_autoencoder_folder_comes_back_as_it_was(autoencoder: Autoencoder, tmp_path: Path) -> None:
    autoencoder.vae.register_to_config(scaling_factor=0.7)
    loaded = load_autoencoder(saved(autoencoder, tmp_path / "run" / "autoencoder").parent)  # a run folder will do
    frames = random_frames(2, *autoencoder.frame_size)
    assert np.array_equal(loaded.reconstruct(frames), autoencoder.reconstruct(frames))
    assert loaded.encoder_sha256 == autoencoder.encoder_sha256
    assert loaded.geometry == autoencoder.geometry and loaded.scaling_factor == 0.7
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


# ------------------------------------------------------------------------------------------------ the world model


def test_channels_are_the_context_oldest_first_then_the_noised_latent() -> None:
    loaded = tiny_world_model()
    seen: list[Tensor] = []
    loaded.world_model.unet.register_forward_pre_hook(lambda module, positional: seen.append(positional[0]))
    channels, height, width = loaded.config.latent_shape
    context = torch.stack([torch.full((1, channels, height, width), float(age)) for age in (1, 2, 3, 4)], dim=1)
    noised = torch.full((1, channels, height, width), 9.0)
    loaded.world_model(noised, torch.tensor([5]), context, torch.tensor([[0, 0, 0, 0]]), torch.tensor([0]))
    assert seen[0].shape == (1, 5 * channels, height, width)
    assert seen[0][0, :, 0, 0].tolist() == [age for age in (1, 2, 3, 4, 9) for _ in range(channels)]


def test_the_order_of_past_actions_matters_and_positions_are_why() -> None:
    loaded = tiny_world_model()
    batch = inputs(loaded, [[LEFT, RIGHT, NOOP, NOOP], [RIGHT, LEFT, NOOP, NOOP], [LEFT, RIGHT, NOOP, RIGHT]])
    one, swapped, other = loaded.world_model(*batch)
    assert (one - swapped).abs().max() > 1e-5
    assert (one - other).abs().max() > 1e-5
    loaded.world_model.action_positions.zero_()
    one, swapped, other = loaded.world_model(*batch)
    assert torch.allclose(one, swapped, atol=1e-6)
    assert (one - other).abs().max() > 1e-5


@pytest.mark.parametrize("count", [3, 5])
def test_as_many_actions_as_context_frames_are_demanded(count: int) -> None:
    loaded = tiny_world_model()  # a context of 4
    noised, timesteps, context, _, buckets = inputs(loaded, [[NOOP] * 4])
    with pytest.raises(ValueError, match=f"expected 4 context frames and actions, got 4 and {count}"):
        loaded.world_model(noised, timesteps, context, torch.zeros(1, count, dtype=torch.int64), buckets)
    with pytest.raises(ValueError, match="expected 4"):
        loaded.world_model(noised, timesteps, context[:, :3], torch.zeros(1, 4, dtype=torch.int64), buckets)


def test_the_network_is_told_the_noise_bucket_and_starts_deaf_to_it() -> None:
    loaded = tiny_world_model()
    quiet, loud = (loaded.world_model(*inputs(loaded, [[NOOP] * 4], bucket)) for bucket in (0, 9))
    assert (quiet - loud).abs().max() > 1e-5
    fresh = build_world_model(get_preset("smoke"), 3)
    assert fresh.unet.class_embedding.weight.shape[0] == 10 and not fresh.unet.class_embedding.weight.any()


@pytest.mark.parametrize("name", ["small", "smoke"])
def test_the_parts_of_a_preset_fit_together(name: str) -> None:
    preset = get_preset(name)
    autoencoder = build_autoencoder(preset)
    moments = autoencoder.black_moments()
    assert tuple(moments.shape[1:]) == (preset.latent_channels, preset.latent_height, preset.latent_width)
    with torch.no_grad():
        pixels = autoencoder.decode_latents(moments)
    assert pixels.shape == (1, 3, preset.padded_height, preset.padded_width)
    world_model = build_world_model(preset, 54)
    weights = sum(p.numel() for network in (autoencoder, world_model) for p in network.parameters())
    most_bytes = {"smoke": 2 * 2**20, "small": 15 * 2**20}[name]  # `small` ships: 16 MiB in float16, start contexts too
    assert 2 * weights < most_bytes
    assert isinstance(world_model, WorldModel) and world_model.context_length == preset.context_length


# ------------------------------------------------------------------------------------------------ world-model folders


def test_a_world_model_folder_comes_back_as_it_was(world_model_folder: Path) -> None:
    saved_model, loaded = tiny_world_model(), load_world_model(world_model_folder.parent)  # the run folder will do
    assert loaded.config == saved_model.config
    assert loaded.config.action_table == ACTION_TABLE and loaded.config.frames_per_second == 10
    batch = inputs(loaded, [[LEFT, RIGHT, NOOP, NOOP]], bucket=3)
    state, expected = loaded.world_model.state_dict(), saved_model.world_model.state_dict()
    assert list(state) == list(expected) and all(state[name].equal(expected[name]) for name in state)
    assert torch.allclose(loaded.world_model(*batch), saved_model.world_model(*batch), atol=1e-5)
    assert loaded.scheduler.config.timestep_spacing == "trailing"
    assert loaded.scheduler.alphas_cumprod.equal(saved_model.scheduler.alphas_cumprod)
    assert loaded.start_contexts.actions.equal(saved_model.start_contexts.actions)
    assert torch.allclose(loaded.start_contexts.latents.float(), saved_model.start_contexts.latents, atol=2e-3)


def test_a_world_model_folder_has_the_promised_files_and_no_pickle(world_model_folder: Path) -> None:
    files = {path.relative_to(world_model_folder).as_posix() for path in world_model_folder.rglob("*.*")}
    assert files >= {
        "config.json",
        "embedding_info.json",
        "action_embedding_model.safetensors",
        "action_positions.safetensors",
        "start_contexts.safetensors",
        "noise_scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/autoencoder_info.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    assert {Path(name).suffix for name in files} == {".json", ".safetensors"}
    assert json.loads((world_model_folder / "embedding_info.json").read_text()) == {
        "num_embeddings": 3,
        "embedding_dim": 32,
    }


def test_a_tuned_decoder_may_replace_the_folders_own_and_another_encoder_may_not(
    world_model_folder: Path, tmp_path: Path
) -> None:
    tuned = tiny_autoencoder()
    next(tuned.vae.decoder.parameters()).add_(0.5)
    loaded = load_world_model(world_model_folder, vae_folder_or_id=saved(tuned, tmp_path / "tuned"))
    assert next(loaded.autoencoder.vae.decoder.parameters()).equal(next(tuned.vae.decoder.parameters()))
    stranger = saved(tiny_autoencoder(seed=1), tmp_path / "stranger")
    with pytest.raises(BadInput, match="its encoder .* is not the one"):
        load_world_model(world_model_folder, vae_folder_or_id=stranger)


@pytest.mark.parametrize(
    "name",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "action_embedding_model.safetensors",
        "action_positions.safetensors",
        "config.json",
        "unet/config.json",
    ],
)
def test_a_file_cut_short_is_refused_by_the_name_of_its_folder(name: str, tmp_path: Path) -> None:
    tiny_world_model().save(tmp_path / "model")
    path = tmp_path / "model" / name
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(BadInput, match=str(tmp_path / "model")):
        load_world_model(tmp_path / "model")


@pytest.mark.parametrize("name", ["unet", "vae"])
def test_pickled_weights_are_never_read(name: str, tmp_path: Path) -> None:
    tiny_world_model().save(tmp_path / "model")
    folder = tmp_path / "model" / name
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(BadInput, match="weights do not load"):
        load_world_model(tmp_path / "model")
    assert not (tmp_path / "exploded").exists()


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_folders_that_are_no_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="not a world-model folder"):
        load_world_model(tmp_path / "empty")
    with pytest.raises(BadInput, match="no such folder"):
        load_world_model(tmp_path / "missing")
    with pytest.raises(BadInput, match="not an autoencoder folder"):
        load_autoencoder(tmp_path / "empty")
    tiny_world_model().save(tmp_path / "model")
    with pytest.raises(BadInput, match="UNet2DConditionModel"):
        load_autoencoder(tmp_path / "model" / "unet")


def test_an_autoencoder_of_another_preset_or_of_unknown_size_is_refused(tmp_path: Path) -> None:
    folder = saved(tiny_autoencoder(), tmp_path / "autoencoder")
    assert load_autoencoder(folder, preset=get_preset("smoke")).preset_name == "smoke"
    with pytest.raises(BadInput, match="made for preset smoke, not small"):
        load_autoencoder(folder, preset=get_preset("small"))
    (folder / "autoencoder_info.json").unlink()
    with pytest.raises(BadInput, match="--preset"):
        load_autoencoder(folder)
    assert load_autoencoder(folder, preset=get_preset("smoke")).frame_size == (80, 60)


def test_a_hub_name_that_cannot_be_had_is_one_clear_error() -> None:
    with pytest.raises(BadInput, match="nobody/nothing-here: neither a local folder nor a Hub repository"):
        load_autoencoder("nobody/nothing-here")
    with pytest.raises(BadInput, match="nobody/nothing-here"):
        load_world_model("nobody/nothing-here")


def test_a_killed_save_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_world_model()
    loaded.save(tmp_path / "model")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("model.write_json", fail)
    with pytest.raises(KeyboardInterrupt):
        loaded.save(tmp_path / "model")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_the_geometry_of_kl_is_what_the_tests_say() -> None:
    assert kl_autoencoder().black_moments().shape == (1, 8, 8, 8)
    assert (KL_GEOMETRY.padded_width, KL_GEOMETRY.padded_height) == (16, 16)
