"""Promises of the options that presets from scratch choose: what is predicted, where actions come in, which timesteps
are learned, and the precision of the finished files."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_models import saved, tiny_autoencoder, tiny_world_model
from torch import nn

from command_line import BadInput
from diffusion import draw, sample_next, timesteps_to_train
from engine import GameEngine
from model import build_world_model, load_autoencoder, load_world_model, make_scheduler
from presets import divisors, get_preset

SMOKE = get_preset("smoke")
SHAPE = (SMOKE.latent_channels, SMOKE.latent_height, SMOKE.latent_width)


def built(**options: object):
    torch.manual_seed(0)
    preset = dataclasses.replace(SMOKE, **options)
    return build_world_model(preset, 3).requires_grad_(False).eval()


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_network_that_says_no_change_repeats_the_last_frame(steps: int) -> None:
    """One step from pure noise: x0 = -v = context[:, -1]. With more, what is left of the noise is all that differs."""
    world_model = built(predicts_change=True)
    context, noise = torch.randn(2, SMOKE.context_length, *SHAPE), torch.randn(2, *SHAPE)
    actions, bucket = torch.zeros(2, SMOKE.context_length, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    assert torch.count_nonzero(world_model.unet.conv_out.weight) == 0
    nn.init.zeros_(world_model.unet.conv_out.bias)
    drawn = sample_next(
        world_model, make_scheduler(), context, actions, bucket, noise, num_inference_steps=steps, guidance_scale=1.0
    )
    if steps == 1:
        assert torch.allclose(drawn, context[:, -1], atol=1e-5)
    else:  # v is short of sqrt(alpha_bar) eps at the later steps
        assert not torch.allclose(drawn, context[:, -1], atol=1e-2)


def test_change_is_what_is_added_to_the_plain_prediction() -> None:
    plain, change = built(), built(predicts_change=True)
    change.load_state_dict(plain.state_dict())
    noised, context = torch.randn(2, *SHAPE), torch.randn(2, SMOKE.context_length, *SHAPE)
    actions, bucket = torch.zeros(2, SMOKE.context_length, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    timesteps = torch.tensor([999, 249])
    sigma = (1 - make_scheduler().alphas_cumprod[timesteps]).sqrt()
    rest = plain(noised, timesteps, context, actions, bucket) - change(noised, timesteps, context, actions, bucket)
    assert float(sigma[0]) == pytest.approx(1, abs=1e-4)
    for row in range(2):
        assert torch.allclose(rest[row], sigma[row] * context[row, -1], atol=1e-5)


@pytest.mark.parametrize("std", [0.2, 0.7, 1.0])
def test_change_is_predicted_about_its_prior(std: float) -> None:
    """Where the next frame really is N(last, std^2) an output of zero is the best guess of v, and what it misses has
    the variance that the output is scaled by, at every timestep."""
    world_model = built(predicts_change=True, change_std=std)
    nn.init.zeros_(world_model.unet.conv_out.bias)
    number, scheduler = 256, make_scheduler()
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(number, SMOKE.context_length, *SHAPE, generator=generator)
    x0 = context[:, -1] + std * torch.randn(number, *SHAPE, generator=generator)
    noise = torch.randn(number, *SHAPE, generator=generator)
    actions = torch.zeros(number, SMOKE.context_length, dtype=torch.int64)
    for timestep in (999, 749, 249, 20):
        timesteps = torch.full((number,), timestep)
        noised, v = (make(x0, noise, timesteps) for make in (scheduler.add_noise, scheduler.get_velocity))
        missed = v - world_model(noised, timesteps, context, actions, actions[:, 0])
        alpha_2 = float(scheduler.alphas_cumprod[timestep])
        expected = std**2 / (std**2 * alpha_2 + 1 - alpha_2)
        assert float(missed.square().mean()) == pytest.approx(expected, rel=0.03)
        assert abs(float((missed * noised).mean())) < 0.02 and abs(float((missed * context[:, -1]).mean())) < 0.02
    empty = torch.zeros_like(context)  # the null of guidance: nothing to draw about, whatever std says
    nothing = world_model(noised, timesteps, empty, actions, actions[:, 0])
    assert torch.allclose(nothing, torch.zeros_like(nothing), atol=1e-5)
    told = built(predicts_change=True)
    nn.init.zeros_(told.unet.conv_out.bias)
    everywhere = torch.full((number, 1, *SHAPE[1:]), std)  # as a motion model tells it
    given = told(noised, timesteps, context, actions, actions[:, 0], everywhere)
    assert torch.allclose(given, world_model(noised, timesteps, context, actions, actions[:, 0]), atol=1e-5)


def test_actions_beside_the_timestep_reach_blocks_without_attention() -> None:
    no_attention = {
        **SMOKE.unet,
        "down_block_types": ["DownBlock2D"] * 2,
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": ["UpBlock2D"] * 2,
    }
    noised, context = torch.randn(1, *SHAPE), torch.randn(1, SMOKE.context_length, *SHAPE)
    timesteps, bucket = torch.tensor([500]), torch.zeros(1, dtype=torch.int64)
    for conditions_on_actions in (False, True):
        world_model = built(unet=no_attention, conditions_on_actions=conditions_on_actions)
        first, second, swapped = (
            world_model(noised, timesteps, context, torch.tensor([actions]), bucket)
            for actions in ([0, 0, 0, 1], [0, 0, 0, 2], [0, 0, 1, 0])
        )
        for other in (second, swapped):  # which action, and when
            assert first.equal(other) != conditions_on_actions


def test_only_the_timesteps_of_the_sampler_are_drawn_each_as_often() -> None:
    scheduler = make_scheduler()
    timesteps = timesteps_to_train(scheduler, 4)
    assert timesteps == [999, 749, 499, 249]
    assert timesteps_to_train(scheduler, None) == list(range(1000))
    draws = draw(
        0, 0, range(2000), (2, 1, 1, 1), train_timesteps=timesteps, max_noise_level=0.7, context_dropout=0, device="cpu"
    )
    counts = {step: int((draws.timesteps == step).sum()) for step in timesteps}
    assert sum(counts.values()) == 2000 and all(abs(count - 500) < 100 for count in counts.values())


@pytest.mark.parametrize("number", [1, 4, 6, 10])
def test_the_steps_a_model_may_be_played_with_visit_only_trained_timesteps(number: int) -> None:
    scheduler = make_scheduler()
    trained = set(timesteps_to_train(scheduler, number))
    for steps in range(1, number + 1):
        assert set(timesteps_to_train(scheduler, steps)) <= trained or steps not in divisors(number)
    assert divisors(number)[0] == 1 and divisors(number)[-1] == number


def test_other_numbers_of_steps_are_refused_by_name() -> None:
    loaded = tiny_world_model(sampler_steps=4)
    assert GameEngine(loaded, num_inference_steps=4).num_inference_steps == 4
    with pytest.raises(BadInput, match=r"--num_inference_steps 3: the model was trained for 1, 2, 4"):
        GameEngine(loaded, num_inference_steps=3)
    with pytest.raises(BadInput, match="num_inference_steps 2 does not divide sampler_steps 3"):
        dataclasses.replace(SMOKE, sampler_steps=3)


def test_the_options_come_back_from_the_folder(tmp_path: Path) -> None:
    loaded = tiny_world_model(predicts_change=True, sampler_steps=4)
    loaded.world_model = built(predicts_change=True, conditions_on_actions=True)
    nn.init.normal_(loaded.world_model.unet.conv_out.weight, std=0.1)
    loaded.save(tmp_path / "model")
    again = load_world_model(tmp_path / "model")
    assert (again.config.predicts_change, again.config.sampler_steps) == (True, 4)
    before, after = GameEngine(loaded, num_inference_steps=2), GameEngine(again, num_inference_steps=2)
    after.reset_to_start(0, 1)
    before.restore(after.state())  # start contexts are stored in half precision
    # Where weights lie in memory decides the last bit on some CPUs.
    assert torch.allclose(before.step_latents([1]), after.step_latents([1]), atol=1e-5)


def test_rounded_weights_are_stored_in_half_the_bytes_and_load_as_they_were(tmp_path: Path) -> None:
    whole, rounded = tiny_world_model(), tiny_world_model()
    for network in (rounded.world_model, rounded.autoencoder.vae):
        for weight in network.parameters():
            weight.copy_(weight.half())
    rounded.config = dataclasses.replace(rounded.config, encoder_sha256=rounded.autoencoder.encoder_sha256)
    for name, loaded in (("whole", whole), ("rounded", rounded)):
        loaded.save(tmp_path / name)
    for part in ("unet", "vae"):
        sizes = {
            name: (tmp_path / name / part / "diffusion_pytorch_model.safetensors").stat().st_size
            for name in ("whole", "rounded")
        }
        assert sizes["rounded"] < 0.6 * sizes["whole"]
    again = load_world_model(tmp_path / "rounded")
    for before, after in zip(rounded.world_model.parameters(), again.world_model.parameters(), strict=True):
        assert before.dtype == after.dtype == torch.float32 and before.equal(after)
    assert again.autoencoder.encoder_sha256 == rounded.autoencoder.encoder_sha256


def test_an_encoder_that_was_not_rounded_keeps_its_fingerprint_on_disk(tmp_path: Path) -> None:
    autoencoder = tiny_autoencoder()
    for name, weight in autoencoder.vae.named_parameters():
        if name.startswith("decoder."):
            weight.copy_(weight.half())
    again = load_autoencoder(saved(autoencoder, tmp_path / "autoencoder"))
    assert again.encoder_sha256 == autoencoder.encoder_sha256
