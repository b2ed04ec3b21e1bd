"""Promises of linear_start.py: an autoencoder from scratch begins as good as any linear one, and learns on."""

from pathlib import Path

import pytest
import torch
from episode_factory import write_episode
from small_runs import call, logged
from torch import Tensor
from torch.nn.functional import interpolate, mse_loss, pixel_shuffle, pixel_unshuffle

from linear_start import LATENT_STD, start_from_components, suits
from model import Autoencoder, build_autoencoder
from presets import get_preset


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """(32, 3, 128, 160) in [-1, 1]: patches of colour of all sizes, and some noise."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((4, 5), (16, 20), (64, 80), (128, 160))
    layers = [torch.rand(32, 3, *size, generator=generator) * 2 - 1 for size in sizes]
    weights = (0.5, 0.3, 0.2, 0.05)
    return sum(w * interpolate(layer, (128, 160), mode="bilinear") for w, layer in zip(weights, layers, strict=True))


@pytest.fixture
def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    return build_autoencoder(get_preset("small"))


def through_components(pictures: Tensor, number: int) -> Tensor:
    """What the first principal components of their 8x8 blocks keep of pictures, by the singular value decomposition."""
    blocks = pixel_unshuffle(pictures, 8).movedim(1, -1)
    mean = blocks.mean(dim=(0, 1, 2))
    _, _, vectors = torch.linalg.svd((blocks - mean).flatten(0, -2), full_matrices=False)
    kept = (blocks - mean) @ vectors[:number].T @ vectors[:number] + mean
    return pixel_shuffle(kept.movedim(-1, 1), 8)


def test_it_begins_at_the_principal_components(pictures: Tensor, autoencoder: Autoencoder) -> None:
    with torch.no_grad():
        at_random = mse_loss(autoencoder(pictures), pictures)
        start_from_components(autoencoder, pictures)
        shown, latents = autoencoder(pictures), autoencoder.encode_pixels(pictures)
    expected = through_components(pictures, autoencoder.latent_channels)
    best, lost = mse_loss(expected, pictures), mse_loss(shown, pictures)
    assert lost < 1.1 * best < 0.05 * at_random, (lost, best, at_random)  # the rest is tanh's
    stds = latents.std(dim=(0, 2, 3))
    assert float(stds[0]) == pytest.approx(LATENT_STD, rel=0.01) and (stds.diff() < 1e-3).all()


def test_a_training_from_scratch_begins_there(tmp_path: Path) -> None:
    base = tmp_path / "episodes"
    for number, split in enumerate(("train", "eval")):
        colours = torch.randint(0, 255, (12, 3), generator=torch.Generator().manual_seed(number))
        write_episode(base / f"{split}/level_0/env_0/episode_000000.parquet", [0] * 12, values=colours[:, 0].tolist())
    words = ("--dataset_basepath", base, "--output_dir", tmp_path / "run", "--train_from_scratch", "--preset", "small")
    words += ("--max_train_steps", 1, "--learning_rate", 1e-12, "--batch_size", 2, "--num_validation_frames", 4)
    call("finetune_vae.py", *words, "--dataloader_num_workers", 0, "--device", "cpu", "--report_to", "none")
    (line,) = [row for row in logged(tmp_path / "run") if "ceiling_psnr_db" in row]
    assert line["ceiling_psnr_db"] > 35, "flat frames are one component; at random it is some 6 dB"


def test_it_learns_on_from_there(pictures: Tensor, autoencoder: Autoencoder) -> None:
    start_from_components(autoencoder, pictures)
    optimizer = torch.optim.SGD(autoencoder.requires_grad_(True).parameters(), 0.01)
    losses = []
    for _ in range(4):
        loss = mse_loss(autoencoder(pictures[:2]), pictures[:2])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    blocks = [*autoencoder.vae.encoder.layers[1:-1], *autoencoder.vae.decoder.layers[2:-1]]
    assert all(float(block.conv[-1].weight.detach().abs().sum()) > 0 for block in blocks), "none of them is dead"


def test_what_is_too_narrow_or_of_several_levels_begins_at_random(pictures: Tensor) -> None:
    deep, bent = build_autoencoder(get_preset("smoke")), build_autoencoder(get_preset("small"))
    bent.vae.register_to_config(act_fn="silu")
    assert not suits(bent)
    assert suits(build_autoencoder(get_preset("small"))) and not suits(deep)
    with pytest.raises(ValueError, match="of one level"):
        start_from_components(deep, pictures)
