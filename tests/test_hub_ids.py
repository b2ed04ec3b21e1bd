"""The promise that whatever names a model, a policy or a data set takes its Hub id as well as a path, everywhere."""

import importlib
from pathlib import Path

import console
import pytest
from command import REPOSITORY
from small_runs import (
    autoencoder_words,
    call,
    changed_words,
    episodes,
    random_autoencoder,
    random_latents,
    world_model_run,
    world_model_words,
)

from command_line import BadInput

HERE = "HF_HUB_OFFLINE is set"
MODEL = f"^owner/unheard-of: neither a local folder nor a Hub .* {HERE}"
DATA = f"^owner/unheard-of: no such folder, and as a data set it cannot be fetched .* {HERE}"
POLICY = f"^--policy owner/unheard-of: no such file, and it cannot be fetched .* {HERE}"
ROWS = [  # script, flag, what it says offline
    ("encode_images.py", "--model_folder_or_id", MODEL),
    ("encode_images.py", "--dataset_basepath", DATA),
    ("finetune_vae.py", "--model_folder_or_id", MODEL),
    ("finetune_vae.py", "--dataset_basepath", DATA),
    ("train_text_to_image.py", "--vae_folder_or_id", MODEL),
    ("train_text_to_image.py", "--pretrained_model_name_or_path", MODEL),
    ("train_text_to_image.py", "--motion_folder", MODEL),
    ("train_text_to_image.py", "--dataset_basepath", DATA),
    ("train_motion.py", "--dataset_basepath", DATA),
    ("train_motion.py", "--pretrained_model_name_or_path", MODEL),
    ("train_motion.py", "--vae_folder_or_id", MODEL),
    ("train_motion.py", "--scene_memory_folder", MODEL),
    ("train_scene_memory.py", "--dataset_basepath", DATA),
    ("train_scene_memory.py", "--vae_folder_or_id", MODEL),
    ("run_autoregressive.py", "--unet_model_folder", MODEL),
    ("run_autoregressive.py", "--vae_ft_model_folder", MODEL),
    ("run_autoregressive.py", "--dataset_basepath", DATA),
    ("make_clips.py", "--model_folder", MODEL),
    ("make_clips.py", "--vae_ft_model_folder", MODEL),
    ("make_clips.py", "--dataset_basepath", DATA),
    ("evaluate.py", "--model_folder", MODEL),
    ("evaluate.py", "--vae_ft_model_folder", MODEL),
    ("evaluate.py", "--episodes", DATA),
    ("play.py", "--model_folder", MODEL),
    ("play.py", "--vae_ft_model_folder", MODEL),
    ("play.py", "--episodes", DATA),
    ("play.py", "--policy", POLICY),
    ("check_data.py", "path", DATA),
    ("load_model_generate_dataset.py", "--policy", POLICY),
    ("evaluate_policy.py", "--policy", POLICY),
]
NAMES_OF_INPUTS = ("folder", "model", "vae", "policy", "basepath")
OUTPUTS = ("--output_folder", "--hub_model_id")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


def test_no_flag_for_a_model_a_policy_or_a_data_set_is_forgotten() -> None:
    scripts = [path for folder in (REPOSITORY, REPOSITORY / "ViZDoomPPO") for path in folder.glob("*.py")]
    found = set()
    for path in scripts:
        if "def build_parser" not in path.read_text(encoding="utf-8"):
            continue
        for action in importlib.import_module(path.stem).build_parser()._actions:
            flag = (action.option_strings or [action.dest])[0]
            is_told = any(words in action.help for words in ("Hub id", "data set on the Hub"))
            if is_told or (any(part in flag for part in NAMES_OF_INPUTS) and flag not in OUTPUTS):
                found.add((path.name, flag))
    assert found == {(script, flag) for script, flag, _ in ROWS}


@pytest.mark.parametrize(("script", "flag", "said"), ROWS, ids=[" ".join(row[:2]) for row in ROWS])
def test_it_takes_a_hub_id_and_offline_says_so(script: str, flag: str, said: str, base: Path, tmp_path: Path) -> None:
    run, play, out = world_model_run(base).folder, episodes(base), tmp_path / "out"
    needed = {
        "encode_images.py": (
            *("--dataset_basepath", play, "--save_dir_path", out),
            *("--model_folder_or_id", random_autoencoder(base)),
        ),
        "finetune_vae.py": autoencoder_words(base, out),
        "train_text_to_image.py": world_model_words(base, out),
        "train_motion.py": ("--dataset_basepath", random_latents(base), "--output_dir", out, "--device", "cpu"),
        "train_scene_memory.py": ("--dataset_basepath", random_latents(base), "--output_dir", out, "--device", "cpu"),
        "run_autoregressive.py": (
            *("--dataset_basepath", play, "--unet_model_folder", run, "--out", out),
            "--start_from_pixels",
        ),
        "make_clips.py": ("--model_folder", run, "--dataset_basepath", play, "--output_dir", out),
        "evaluate.py": ("--model_folder", run, "--episodes", play, "--output_folder", out),
        "play.py": ("--model_folder", run, "--port", 0, "--recordings_dir", out, "--no_browser"),
        "check_data.py": (),
        "load_model_generate_dataset.py": ("--output_dir", out),
        "evaluate_policy.py": (),
    }[script]
    words = changed_words(needed, **{flag[2:]: "owner/unheard-of"}) if flag != "path" else ("owner/unheard-of",)
    with pytest.raises((BadInput, console.BadInput), match=said):
        call(script, *words)
    assert list(tmp_path.iterdir()) == []
