"""Promises of finetune_vae.py: which weights change, exact resume after a kill, the scale, what it refuses."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command import succeed
from PIL import Image
from safetensors.torch import load_file
from small_runs import (
    HALF_STEPS,
    ROWS,
    STEPS,
    Run,
    autoencoder_run,
    autoencoder_words,
    call,
    changed_words,
    episodes,
    logged,
    random_autoencoder,
    run_until_killed,
    tree,
)
from tiny_models import kl_autoencoder, saved, tiny_autoencoder
from torch.nn.functional import mse_loss, pixel_unshuffle

from command_line import BadInput
from data_loader import FrameDataset
from episodes import find_episodes
from finetune_vae import centred, film_rows, texture_loss, worn
from model import load_autoencoder

SCRIPT = "finetune_vae.py"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="module")
def run(base: Path) -> Run:
    return autoencoder_run(base)


def from_scratch(base: Path, output_dir: Path, **flags: object) -> None:
    words = changed_words(autoencoder_words(base, output_dir), model_folder_or_id=None, preset="smoke", **flags)
    call(SCRIPT, *words, "--train_from_scratch")


# ------------------------------------------------------------------------------------------------ what is trained


@pytest.mark.parametrize("build", [kl_autoencoder, tiny_autoencoder], ids=["AutoencoderKL", "AutoencoderTiny"])
def test_decoder_tuning_changes_the_decoder_and_leaves_the_encoder_to_the_bit(
    build: type, base: Path, tmp_path: Path
) -> None:
    before = build()
    folder = saved(before, tmp_path / "before")
    words = changed_words(autoencoder_words(base, tmp_path / "run"), model_folder_or_id=folder, max_train_steps=3)
    call(SCRIPT, *changed_words(words, learning_rate=1e-2, lr_warmup_steps=0, ema_decay=0.5))
    after = load_autoencoder(tmp_path / "run")
    kept = {name: tensor.equal(before.vae.state_dict()[name]) for name, tensor in after.vae.state_dict().items()}
    is_decoder = {name: name.startswith(("decoder.", "post_quant_conv.")) for name in kept}
    assert kept == {name: not each for name, each in is_decoder.items()}
    if build is kl_autoencoder:
        assert {"quant_conv.weight", "encoder.conv_in.weight"} <= {name for name in kept if kept[name]}
        assert {"post_quant_conv.weight", "decoder.conv_in.weight"} <= {name for name in kept if not kept[name]}
    assert after.encoder_sha256 == before.encoder_sha256
    assert after.scaling_factor == before.scaling_factor and after.geometry == before.geometry


def test_tuning_lowers_the_error_of_the_decoder(base: Path, tmp_path: Path) -> None:
    flags = {"max_train_steps": 30, "learning_rate": 5e-3, "lr_warmup_steps": 0, "validation_steps": 1}
    call(SCRIPT, *changed_words(autoencoder_words(base, tmp_path / "run"), ema_decay=0.5, **flags))
    ceilings = [row["ceiling_psnr_db"] for row in logged(tmp_path / "run") if "ceiling_psnr_db" in row]
    assert ceilings[-1] > ceilings[0] + 2
    held_out = FrameDataset(find_episodes(episodes(base) / "eval"))
    autoencoder = load_autoencoder(tmp_path / "run")
    real = autoencoder.resize_frames(held_out.frames(np.arange(len(held_out)))).numpy()
    error = (autoencoder.reconstruct(real).astype(float) - real) ** 2
    expected = float((10 * np.log10(255**2 / error.mean(axis=(1, 2, 3)))).mean())
    assert ceilings[-1] == pytest.approx(expected, abs=1.0)  # printed for 8 of the 24 frames


def test_the_loss_is_the_mean_square_error_of_padded_pixels(base: Path, tmp_path: Path) -> None:
    """With one training frame and batch, the first loss is a plain number."""
    words = changed_words(autoencoder_words(base, tmp_path / "run"), max_train_steps=1, batch_size=72)
    call(SCRIPT, *words)  # 72 frames are all there are
    loss = next(row["loss"] for row in logged(tmp_path / "run") if "loss" in row)
    frames = FrameDataset(find_episodes(episodes(base) / "train"))
    autoencoder = load_autoencoder(random_autoencoder(base))
    with torch.no_grad():
        pixels = autoencoder.frames_to_pixels(frames.frames(np.arange(72)))
        decoded = autoencoder.decode_latents(autoencoder.sample_latents(autoencoder.encode_pixels(pixels)))
    assert pixels.shape == (72, 3, 64, 80)
    assert loss == pytest.approx(float((decoded - pixels).square().mean()), rel=1e-4)


def test_training_from_scratch_trains_all_and_scales_latents_to_one(base: Path, tmp_path: Path) -> None:
    from_scratch(base, tmp_path / "run", max_train_steps=3, lr_warmup_steps=0, ema_decay=0.5)
    from_scratch(base, tmp_path / "start", max_train_steps=1, learning_rate=1e-9, lr_warmup_steps=0)
    trained, fresh = (load_autoencoder(tmp_path / name) for name in ("run", "start"))
    before = fresh.vae.state_dict()
    assert all((tensor - before[name]).abs().max() > 1e-6 for name, tensor in trained.vae.state_dict().items())
    frames = FrameDataset(find_episodes(episodes(base) / "train"))
    with torch.no_grad():
        pixels = trained.frames_to_pixels(frames.frames(np.arange(len(frames))))
        latents = trained.sample_latents(trained.encode_pixels(pixels))
    assert float(latents.std()) == pytest.approx(1.0, rel=1e-3)
    assert trained.scaling_factor != 1.0


# ------------------------------------------------------------------------------------------------ exact resume


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_very_same_weights(base: Path, run: Run, tmp_path: Path) -> None:
    words = autoencoder_words(base, tmp_path / "run")
    run_until_killed(SCRIPT, *words, once_there=tmp_path / "run" / f"checkpoint-{HALF_STEPS}")
    assert not (tmp_path / "run" / f"checkpoint-{STEPS}").exists()
    assert f"resumed from {tmp_path}/run/checkpoint-{HALF_STEPS}\n" in succeed(SCRIPT, *words)
    one, other = (folder / f"checkpoint-{STEPS}" for folder in (run.folder, tmp_path / "run"))
    for name in ("model", "ema", "optimizer"):
        assert (one / f"{name}.safetensors").read_bytes() == (other / f"{name}.safetensors").read_bytes(), name
    weights = [
        folder / "autoencoder" / "diffusion_pytorch_model.safetensors" for folder in (run.folder, tmp_path / "run")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_run_from_scratch_is_known_again_in_another_process(base: Path, tmp_path: Path) -> None:
    words = (
        "--dataset_basepath",
        episodes(base),
        "--output_dir",
        tmp_path,
        "--train_from_scratch",
        "--preset",
        "smoke",
    )
    words += ("--max_train_steps", 1, "--num_validation_frames", 4, "--dataloader_num_workers", 0, "--device", "cpu")
    for hash_seed, said in (("1", "after 1 steps"), ("2", "is finished: 1 steps")):
        assert said in succeed(SCRIPT, *words, extra={"PYTHONHASHSEED": hash_seed})


def test_worn_frames_come_back_to_where_they_are_and_are_those_asked_for() -> None:
    x = torch.linspace(-1, 1, 80).expand(64, -1)
    smooth = (0.8 * torch.sin(3 * x) * torch.cos(torch.linspace(-1, 1, 64))[:, None]).expand(40, 3, -1, -1).clone()
    seen = []

    def nothing_wears(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels)
        return pixels

    most = SimpleNamespace(seed=0, worn_share=0.999)
    assert torch.allclose(worn(nothing_wears, smooth, most, 5, 0), smooth, atol=0.03)
    assert (seen[0] - smooth).abs().amax(dim=(1, 2, 3)).median() > 0.05, "it was moved meanwhile"
    black = worn(lambda pixels: pixels * 0, smooth, most, 5, 0) == 0
    assert 0.8 < float(black.float().mean()) < 1 and black[:, :, 32, 40].all(), "all but some edges"
    half = worn(lambda pixels: pixels * 0, smooth, SimpleNamespace(seed=0, worn_share=0.5), 5, 0)
    is_worn = (half[:, 0, 32, 20] == 0).tolist()
    assert 12 <= sum(is_worn) <= 28
    again = worn(lambda pixels: pixels * 0, smooth[:8], SimpleNamespace(seed=0, worn_share=0.5), 5, 8)
    assert again.equal(half[8:16]), "a frame's place in the global batch decides, not the batch it comes in"


def test_texture_counts_by_how_much_there_is_and_not_by_where() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(2, 3, 64, 80, generator=generator).clamp(-2, 2) / 2
    other = torch.randn(2, 3, 64, 80, generator=generator).clamp(-2, 2) / 2
    blurred = torch.nn.functional.avg_pool2d(real, 3, stride=1, padding=1)
    assert float(texture_loss(real, real)) == 0
    assert mse_loss(other, real) > 1.5 * mse_loss(blurred, real), "to squared error blur is the better one"
    assert texture_loss(other, real) < 0.3 * texture_loss(blurred, real), "and here it is not"
    flat = torch.zeros(2, 3, 64, 80, requires_grad=True)
    texture_loss(flat + 0.01 * other, real).backward()
    assert flat.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["scratch", "AutoencoderKL", "worn"])
def test_a_second_session_goes_on_exactly(kind: str, base: Path, tmp_path: Path) -> None:
    """From scratch the scale is written and taken back; a posterior draws noise: neither may disturb a resume."""
    folder = saved(kl_autoencoder(), tmp_path / "kl")
    for name, sessions in {"whole": (4,), "halves": (2, 4)}.items():
        for steps in sessions:
            flags = {"max_train_steps": steps, "checkpointing_steps": 2, "lr_warmup_steps": 0}
            if kind == "scratch":
                from_scratch(base, tmp_path / name, **flags)
            else:
                flags |= (
                    {"worn_share": 0.5, "texture_weight": 0.1} if kind == "worn" else {"model_folder_or_id": folder}
                )
                words = changed_words(autoencoder_words(base, tmp_path / name), **flags)
                call(SCRIPT, *words)
    for name in ("model", "ema", "optimizer"):
        paths = [tmp_path / run / "checkpoint-4" / f"{name}.safetensors" for run in ("whole", "halves")]
        assert paths[0].read_bytes() == paths[1].read_bytes(), name
    configs = [json.loads((tmp_path / run / "autoencoder" / "config.json").read_text()) for run in ("whole", "halves")]
    assert configs[0]["scaling_factor"] == configs[1]["scaling_factor"]


# ------------------------------------------------------------------------------------------------ what it leaves


def test_settings_come_first_and_the_result_last_with_the_next_command(run: Run) -> None:
    lines = run.stdout.splitlines()
    assert lines[0].startswith("dataset_basepath: ") and "learning_rate: 0.0001" in lines
    assert lines[-1].startswith(f"wrote {run.folder}/autoencoder after {STEPS} steps; encode with it: python encode_im")


def test_the_folder_to_use_holds_the_averaged_decoder(run: Run) -> None:
    averaged = load_file(run.folder / f"checkpoint-{STEPS}" / "ema.safetensors")
    weights = load_file(run.folder / "autoencoder" / "diffusion_pytorch_model.safetensors")
    assert averaged and all(name.startswith("vae.decoder.") for name in averaged)
    differ = [name for name, tensor in averaged.items() if not weights[name.removeprefix("vae.")].equal(tensor)]
    assert len(differ) == 1 and re.fullmatch(r"vae\.decoder\.layers\.\d+\.bias", differ[0]), "centred"


def test_what_is_saved_errs_by_nothing_on_average(base: Path, tmp_path: Path) -> None:
    """In each place of a block and each colour, over the frames of training; its weights are float16 all the same."""
    from_scratch(base, tmp_path / "run", max_train_steps=2, save_dtype="float16", mixed_precision="bf16")
    frames = FrameDataset(find_episodes(episodes(base) / "train"))
    autoencoder = load_autoencoder(tmp_path / "run")
    pixels = autoencoder.frames_to_pixels(frames.frames(np.arange(len(frames))))
    with torch.no_grad():
        error = pixel_unshuffle(autoencoder(pixels) - pixels, autoencoder.unshuffle)
    assert error.mean(dim=(0, 2, 3)).abs().max() < 1e-3 < 0.05 < error.abs().mean()
    weights = load_file(tmp_path / "run/autoencoder/diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    before = [parameter.clone() for parameter in autoencoder.parameters()]
    with centred(autoencoder.requires_grad_(False), frames.frames(np.arange(4))):
        assert not all(one.equal(other) for one, other in zip(before, autoencoder.parameters(), strict=True))
    assert all(one.equal(other) for one, other in zip(before, autoencoder.parameters(), strict=True))


def test_validation_prints_and_keeps_the_ceiling_beside_the_constant(run: Run) -> None:
    row = next(row for row in logged(run.folder) if "ceiling_psnr_db" in row)
    assert set(row) == {"step", "ceiling_psnr_db", "ceiling_detail", "constant_psnr_db", "constant_detail"}
    assert f"constant   {row['constant_psnr_db']:>8.2f}" in run.stdout
    with Image.open(run.folder / "samples" / f"step_{STEPS:06d}.png") as picture:
        assert picture.size == (4 * 80, 2 * 60)


def test_a_film_shows_held_out_play_beside_what_was_decoded_of_it_at_the_games_pace(base: Path, run: Run) -> None:
    held_out = FrameDataset(find_episodes(episodes(base) / "eval")).frames(range(ROWS))
    held_out = load_autoencoder(run.folder / "autoencoder").resize_frames(held_out).numpy()
    shown = []
    with Image.open(run.folder / "samples" / f"step_{STEPS:06d}.gif") as film:
        for number in range(film.n_frames):
            film.seek(number)
            shown += [np.asarray(film.convert("RGB")).astype(int)] * (
                film.info["duration"] // 100
            )  # ms; 10 rows a second
    for picture, real in zip(shown, held_out, strict=True):
        edge = (len(picture) - 2 * 60) // 2  # twice as large, a line of text above and below
        left, right = picture[edge:-edge:2, : 2 * 80 : 2], picture[edge:-edge:2, 2 * 80 :: 2]
        assert abs(left - real).mean() < 5, "real, but for the film's colours"
        assert abs(right - real).mean() > 10, "a decoder that has learned for a moment"


def test_a_film_is_taken_from_the_middle_of_an_episode_as_fast_as_it_was_played() -> None:
    def info(rows: int, tics_per_second: float = 35.0, tics_per_row: int = 1) -> SimpleNamespace:
        return SimpleNamespace(rows=rows, tics_per_second=tics_per_second, tics_per_row=tics_per_row)

    assert film_rows(info(1000)) == (range(436, 564, 4), 8.75)
    assert film_rows(info(1000, tics_per_row=4)) == (range(484, 516), 8.75)
    assert film_rows(info(10)) == (range(1, 9, 4), 8.75), "a short one"
    assert film_rows(info(1)) == (range(1), 35.0)


def test_a_run_folder_holds_no_pickle(run: Run) -> None:
    suffixes = {path.suffix for path in run.folder.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".jsonl", ".safetensors", ".png", ".gif"}


# ------------------------------------------------------------------------------------------------ refusals


def test_another_seed_batch_or_autoencoder_is_refused_by_name_and_nothing_is_touched(
    run: Run, base: Path, tmp_path: Path
) -> None:
    stranger = saved(tiny_autoencoder(seed=1), tmp_path / "stranger")
    before = tree(run.folder)
    for flags, words in [
        ({"seed": 1}, "was begun with seed 0, not 1"),
        ({"batch_size": 3}, "was begun with global_batch_size 4, not 3"),
        ({"model_folder_or_id": stranger}, "was begun with encoder_sha256"),
        ({"resume_from_checkpoint": "none"}, f"already holds checkpoint-{STEPS}; go on with --resume_from_checkpoint"),
        ({"preset": "small"}, "made for preset smoke, not small"),
        ({"worn_share": 0.5}, "was begun with worn_share 0.0, not 0.5"),
    ]:
        with pytest.raises(BadInput, match=words):
            call(SCRIPT, *changed_words(run.words, **flags))
    with pytest.raises(BadInput, match="trained_from_scratch False, not True"):
        from_scratch(base, run.folder)
    assert tree(run.folder) == before
