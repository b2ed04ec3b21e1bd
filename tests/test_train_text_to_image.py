"""Promises of train_text_to_image.py: exact resume after a kill, the rows, the folder it leaves, what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from command import refusal, succeed
from PIL import Image
from safetensors.torch import load_file
from small_runs import (
    HALF_STEPS,
    ROWS,
    STEPS,
    Run,
    call,
    changed_words,
    episodes,
    logged,
    random_autoencoder,
    random_latents,
    run_until_killed,
    tree,
    world_model_run,
    world_model_words,
)
from tiny_models import ACTION_TABLE, saved, tiny_autoencoder

from command_line import BadInput
from data_loader import WindowDataset
from episodes import find_latents
from metrics import ROWS as ROW_NAMES
from model import load_autoencoder, load_world_model

SCRIPT = "train_text_to_image.py"
WEIGHTS = ("model", "ema", "optimizer")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="module")
def run(base: Path) -> Run:
    return world_model_run(base)


def short(base: Path, output_dir: Path, **flags: object) -> dict[str, float]:
    """Trains a step or two in this process; returns the numbers of the last step's log line."""
    quick = {"max_train_steps": 1, "lr_warmup_steps": 0, **flags}
    call(SCRIPT, *changed_words(world_model_words(base, output_dir), **quick))
    return next(row for row in reversed(logged(output_dir)) if "loss" in row)


# ------------------------------------------------------------------------------------------------ exact resume


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_very_same_weights(base: Path, run: Run, tmp_path: Path) -> None:
    words = world_model_words(base, tmp_path / "run")
    run_until_killed(SCRIPT, *words, once_there=tmp_path / "run" / f"checkpoint-{HALF_STEPS}")
    assert not (tmp_path / "run" / f"checkpoint-{STEPS}").exists()
    stdout = succeed(SCRIPT, *words)
    assert f"resumed from {tmp_path}/run/checkpoint-{HALF_STEPS}\n" in stdout
    one, other = (folder / f"checkpoint-{STEPS}" for folder in (run.folder, tmp_path / "run"))
    for name in WEIGHTS:
        assert (one / f"{name}.safetensors").read_bytes() == (other / f"{name}.safetensors").read_bytes(), name
    states = [json.loads((folder / "state.json").read_text()) for folder in (one, other)]
    assert all(state.pop("trained_seconds") > 0 for state in states)
    assert states[0] == states[1]
    for name in ("unet/diffusion_pytorch_model", "action_embedding_model", "action_positions", "start_contexts"):
        paths = [folder / "world_model" / f"{name}.safetensors" for folder in (run.folder, tmp_path / "run")]
        assert paths[0].read_bytes() == paths[1].read_bytes(), name


def test_micro_batches_and_gradient_checkpointing_change_nothing_but_rounding(base: Path, tmp_path: Path) -> None:
    losses, weights = [], []
    for number, flags in enumerate(
        [
            {"train_batch_size": 4},
            {"train_batch_size": 2, "gradient_accumulation_steps": 2},
            {"train_batch_size": 1, "gradient_accumulation_steps": 4},
        ]
    ):
        losses.append(short(base, tmp_path / str(number), max_train_steps=2, **flags)["loss"])
        weights.append(load_file(tmp_path / str(number) / "checkpoint-2" / "optimizer.safetensors"))
    checked = changed_words(world_model_words(base, tmp_path / "checked"), max_train_steps=2, train_batch_size=4)
    call(SCRIPT, *changed_words(checked, lr_warmup_steps=0), "--gradient_checkpointing")
    losses.append(next(row["loss"] for row in logged(tmp_path / "checked") if "loss" in row))
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-3)
    for name, expected in weights[0].items():
        for other in weights[1:]:
            assert torch.allclose(other[name], expected, rtol=1e-2, atol=1e-4), name


def test_training_from_pixels_sees_what_training_from_latents_sees(base: Path, tmp_path: Path) -> None:
    expected = short(base, tmp_path / "latents")["loss"]
    words = changed_words(
        world_model_words(base, tmp_path / "pixels"),
        dataset_basepath=episodes(base),
        vae_folder_or_id=random_autoencoder(base),
        max_train_steps=1,
        lr_warmup_steps=0,
    )
    call(SCRIPT, *words, "--from_pixels")
    loss = next(row["loss"] for row in logged(tmp_path / "pixels") if "loss" in row)
    assert loss == pytest.approx(expected, rel=1e-3)
    assert short(base, tmp_path / "other", seed=1)["loss"] != pytest.approx(expected, rel=1e-3)


# ------------------------------------------------------------------------------------------------ what it leaves


def test_settings_come_first_and_the_result_last_with_the_next_command(run: Run) -> None:
    lines = run.stdout.splitlines()
    assert lines[0].startswith("dataset_basepath: ")
    assert "learning_rate: 0.001" in lines and "train_episodes: 3" in lines and "validation_episodes: 1" in lines
    assert lines[-1].startswith(f"wrote {run.folder}/world_model after {STEPS} steps; roll it out: python run_auto")


def test_validation_prints_the_four_rows_with_psnr_and_detail_and_logs_them(run: Run) -> None:
    lines = run.stdout.splitlines()
    heading = next(number for number, line in enumerate(lines) if line.endswith("PSNR dB  detail"))
    assert f"4 held-out windows after {STEPS} steps (last):" in lines[heading - 1]
    printed = {line.split()[0]: [float(x) for x in line.split()[1:]] for line in lines[heading + 1 : heading + 5]}
    assert list(printed) == list(ROW_NAMES)
    row = next(row for row in logged(run.folder) if "model_psnr_db" in row)
    for name, (psnr_db, detail) in printed.items():
        assert row[f"{name}_psnr_db"] == pytest.approx(psnr_db, abs=0.006)
        assert row[f"{name}_detail"] == pytest.approx(detail, abs=0.006)
    assert printed["copy_last"][0] > 20 and printed["copy_last"][1] == pytest.approx(1, abs=0.1)


def test_the_folder_to_play_holds_the_averaged_weights_and_all_that_play_needs(run: Run, base: Path) -> None:
    loaded = load_world_model(run.folder)
    averaged = load_file(run.folder / f"checkpoint-{STEPS}" / "ema.safetensors")
    weights = dict(loaded.world_model.named_parameters())
    assert set(weights) == set(averaged)
    assert all(weights[name].equal(averaged[name]) for name in weights)
    trained = load_file(run.folder / f"checkpoint-{STEPS}" / "model.safetensors")
    assert any(not trained[name].equal(averaged[name]) for name in weights)
    config = loaded.config
    assert (config.context_length, config.frame_stride, config.tics_per_second) == (4, 1, 10.0)
    assert config.action_table == ACTION_TABLE and config.trained_steps == STEPS
    assert config.encoder_sha256 == load_autoencoder(random_autoencoder(base)).encoder_sha256
    starts = loaded.start_contexts
    assert starts.latents.shape == (8, 4, 4, 8, 10) and starts.actions.shape == (8, 3)
    held_out = WindowDataset(
        find_latents(random_latents(base) / "eval"), context_length=4, frame_stride=1
    )  # the contexts are whole histories of the held-out episode
    known = [held_out[index] for index in range(len(held_out)) if held_out.window_rows(index)[0] >= 0]
    for latents, actions in zip(starts.latents, starts.actions, strict=True):
        assert any(
            torch.allclose(latents.float(), item["moments"][:-1].float(), atol=1e-3)
            and actions.equal(item["actions"][:-1])
            for item in known
        )


def test_the_autoencoder_is_left_as_it_was(run: Run, base: Path) -> None:
    kept = random_autoencoder(base) / "diffusion_pytorch_model.safetensors"
    own = run.folder / "world_model" / "vae" / kept.name
    weights = load_file(kept)
    assert all(tensor.equal(weights[name]) for name, tensor in load_file(own).items())


def test_a_run_folder_holds_a_sample_film_and_no_pickle(run: Run) -> None:
    files = [path for path in run.folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".jsonl", ".safetensors", ".gif"}
    assert not [path for path in files if "partial" in str(path)]
    with Image.open(run.folder / "samples" / f"step_{STEPS:06d}.gif") as film:
        assert film.width == 2 * 2 * 80  # the real game and the dream, twice as large


# ------------------------------------------------------------------------------------------------ refusals


def test_another_preset_seed_or_batch_is_refused_by_name_and_nothing_is_touched(
    run: Run, base: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.json").write_text('{"base": "smoke"}')
    before = tree(run.folder)
    for flags, words in [
        ({"preset": tmp_path / "other.json"}, "was begun with .* smoke, not other"),
        ({"seed": 1}, "was begun with seed 0, not 1"),
        ({"train_batch_size": 3}, "was begun with global_batch_size 2, not 3"),
        ({"resume_from_checkpoint": "none"}, f"already holds checkpoint-{STEPS}; go on with --resume_from_checkpoint"),
        ({"resume_from_checkpoint": "checkpoint-1"}, "no such checkpoint"),
    ]:
        with pytest.raises(BadInput, match=words):
            call(SCRIPT, *changed_words(run.words, **flags))
    assert tree(run.folder) == before


def test_latents_of_another_encoder_are_refused_and_nothing_is_written(base: Path, tmp_path: Path) -> None:
    stranger = saved(tiny_autoencoder(seed=1), tmp_path / "stranger")
    words = changed_words(world_model_words(base, tmp_path / "run"), vae_folder_or_id=stranger)
    assert "latents of encoder" in refusal(SCRIPT, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_channels": 8}, r"its latents are \(4, 8, 10\), preset other has \(8, 8, 10\)"),
        ({"unet": {"block_out_channels": [10, 20]}}, "preset other: its unet cannot be built"),
        ({"base": "small"}, "made for preset smoke, not other"),
    ],
)
def test_a_preset_that_does_not_go_with_the_latents_is_refused(
    base: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    (tmp_path / "other.json").write_text(json.dumps({"base": "smoke", **changes}))
    words = changed_words(world_model_words(base, tmp_path / "run"), preset=tmp_path / "other.json")
    with pytest.raises(BadInput, match=message):
        call(SCRIPT, *words)
    assert not (tmp_path / "run").exists()


def test_episodes_that_are_gone_leave_no_rows_but_train(base: Path, tmp_path: Path) -> None:
    latents = tmp_path / "latents"
    shutil.copytree(random_latents(base), latents)
    for path in find_latents(latents):
        stored = torch.load(path, weights_only=True)
        stored["metadata"]["source"] = str(tmp_path / "gone.parquet")
        torch.save(stored, path)
    flags = {"dataset_basepath": latents, "max_train_steps": 1}
    call(SCRIPT, *changed_words(world_model_words(base, tmp_path / "run"), **flags))
    assert load_world_model(tmp_path / "run").config.trained_steps == 1
    assert not any("model_psnr_db" in row for row in logged(tmp_path / "run"))


def test_the_run_uses_every_frame_of_the_episodes(run: Run) -> None:
    assert f"{3 * (ROWS - 1)} windows, global batch 2" in run.stdout
