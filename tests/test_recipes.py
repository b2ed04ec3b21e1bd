"""The recipes: real runs whose only argument is the data path, from any directory."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import REPOSITORY, environment
from small_runs import call, episodes
from stage_one import GENERATE
from stage_one import call as call_stage1
from tiny_models import stable_diffusion_folder, tiny_sd14

from episodes import find_latents
from model import load_autoencoder, load_world_model

WORLD_MODEL = "train_diffusion_scripts/single_gpu_latents.sh"
SMALL = "train_diffusion_scripts/small.sh"
DECODER = "finetune_vae_scripts/single_gpu.sh"
QUICK = ("--max_train_steps", 1, "--gradient_accumulation_steps", 1, "--dataloader_num_workers", 0, "--device", "cpu")
QUICK += ("--report_to", "none")


def recipe(name: str, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a recipe with this Python, from a folder of the caller's."""
    command = ["sh", str(REPOSITORY / name), *(str(word) for word in words)]
    extra = environment({"PYTHON": sys.executable})
    return subprocess.run(command, cwd=cwd, env=extra, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def preset_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd14(stable_diffusion_folder(tmp_path_factory.mktemp("recipes") / "sd"))


@pytest.mark.parametrize("name", [WORLD_MODEL, DECODER])
def test_without_a_data_path_a_recipe_prints_its_usage(name: str, tmp_path: Path) -> None:
    done = recipe(name, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("usage: sh ") and not done.stdout
    assert done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [WORLD_MODEL, DECODER, SMALL])
def test_a_recipe_is_plain_posix_shell(name: str) -> None:
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    assert text.startswith("#!/bin/sh\n") and "set -eu" in text and not re.search(r"\[\[|^function |<<<", text, re.M)
    assert subprocess.run(["sh", "-n", str(REPOSITORY / name)]).returncode == 0


@pytest.mark.parametrize(("name", "batch"), [(WORLD_MODEL, 128), (DECODER, 2048)])
def test_the_batch_is_the_papers(name: str, batch: int) -> None:
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    command = text[text.index("exec ") :]
    (windows,) = re.findall(r"--(?:train_)?batch_size (\d+)", command)
    (accumulated,) = re.findall(r"--gradient_accumulation_steps (\d+)", command)
    assert int(windows) * int(accumulated) == batch


def test_a_recipe_passes_on_what_is_wrong_with_its_data(tmp_path: Path) -> None:
    done = recipe(WORLD_MODEL, "nowhere", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "nowhere" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_both_recipes_train_what_they_promise_from_any_directory(
    preset_path: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = episodes(tmp_path_factory.getbasetemp())
    os.symlink(data, tmp_path / "my episodes")
    done = recipe(DECODER, "my episodes", "--preset", preset_path, *QUICK, "--num_validation_frames", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "mixed_precision: bf16" in done.stdout and "global batch 8" in done.stdout
    assert load_autoencoder(tmp_path / "runs/sd14_decoder").geometry.frame_width == 16
    words = ("--dataset_basepath", data, "--save_dir_path", tmp_path / "my latents", "--preset", preset_path)
    call("encode_images.py", *words, "--all_tics", "--device", "cpu", "--dataloader_num_workers", 0)
    done = recipe(
        WORLD_MODEL, "my latents", "--preset", preset_path, *QUICK, "--num_validation_windows", 2, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "optimizer: adafactor" in done.stdout and "global batch 16" in done.stdout
    assert load_world_model(tmp_path / "runs/sd14").config.context_length == 4


def test_the_small_recipe_compiles_what_gains_by_it(tmp_path: Path) -> None:
    listing = tmp_path / "python"
    listing.write_text('#!/bin/sh\necho "$@"\n')
    listing.chmod(0o755)
    (tmp_path / "out/latents").mkdir(parents=True)
    (tmp_path / "out/latents/latent_black.pt").touch()  # as encoding leaves it
    words = ["sh", REPOSITORY / SMALL, "episodes", "out", "--torch_compile", "--max_train_minutes", "3"]
    done = subprocess.run(
        words, cwd=tmp_path, env=environment({"PYTHON": str(listing)}), capture_output=True, text=True
    )
    trained = [line for line in done.stdout.splitlines() if "--max_train_minutes 3" in line]
    compiled = [Path(line.split()[0]).name for line in trained if "--torch_compile" in line]
    others = [Path(line.split()[0]).name for line in trained if "--torch_compile" not in line]
    assert compiled == ["finetune_vae.py", "train_text_to_image.py"]
    assert others == ["train_scene_memory.py", "train_motion.py", "train_motion.py"]


@pytest.mark.slow
def test_the_small_recipe_makes_a_playable_model_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    flags = ["--policy", "explore", "--level", "2", "--bots", "2", "--episode_tics", "280"]
    flags += ["--record_stride", "2", "--num_workers", "1", "--screen_resolution", "RES_160X120", "--record_depth"]
    for more in (("explore", "--split", "eval", "--episodes", "1"), ("training", "--episodes", "5")):
        played = call_stage1(GENERATE, *flags, "--output_dir", tmp_path / "my episodes" / more[0], *more[1:])
        assert played.returncode == 0, played.stderr
    words = ("my episodes", "out", *QUICK[:2], *QUICK[4:], "--channels_last", "no")
    done = recipe(SMALL, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "a playable model: out/world_model_run/world_model"
    stored = [path.parts[-5] for path in find_latents(tmp_path / "out/latents")]
    assert sorted(stored) == ["explore", "training", "training"], "of an agent's training every fourth episode"
    assert "windows with depth" in done.stdout and done.stdout.count("windows show an event") == 3
    loaded = load_world_model(tmp_path / "out/world_model_run")
    tuned = load_autoencoder(tmp_path / "out/decoder").vae.state_dict()
    assert loaded.world_model.memory is not None and len(loaded.start_contexts.latents) == 6
    assert loaded.world_model.mover.motion.config.pixels_per_cell == 8 and (tmp_path / "out/motion_begun").is_dir()
    assert all(tuned[name].equal(tensor) for name, tensor in loaded.autoencoder.vae.state_dict().items())
    more = ["2" if word == 1 else word for word in words]
    again = recipe(SMALL, *more, cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-2000:]
    assert load_world_model(tmp_path / "out/world_model_run").config.trained_steps == 2
    assert len(list((tmp_path / "out/motion").glob("checkpoint-*"))) == 1, "what the world model looks through stays"
    (tmp_path / "out/motion_begun").rename(tmp_path / "elsewhere")
    (tmp_path / "out/world_model_run").rename(tmp_path / "world_model_run")
    earlier = recipe(SMALL, *words, cwd=tmp_path)
    assert earlier.returncode == 2 and "out/motion is of another recipe" in earlier.stderr.splitlines()[-1]
