"""The command lines of the reproduction that this toolkit was made from are understood as they are spelled there."""

import importlib
import shlex

import pytest
from command import REPOSITORY

COMMANDS = [
    "train_ppo_and_collect_data_parallel.py --out_base_dir dataset",
    "load_model_generate_dataset.py --episodes 10 --output parquet --upload --hf_repo name",
    "load_model_generate_dataset.py --episodes 1 --output gif",
    "encode_images.py --dataset_basepath parquets --save_dir_path latents --dataloader_num_workers 4 --batch_size 8 "
    "--dtype bf16 --num_chunks 3 --chunk_id 2 --gpu_id 2",
    "run_autoregressive.py --dataset_basepath parquets --num_episodes 2 --episode_length 300 --unet_model_folder unet "
    "--vae_ft_model_folder vae --num_inference_steps 4 --discretized_noise_level 0 --start_from_pixels",
]
FILES = [
    "train_diffusion_scripts/single_gpu_latents.sh",
    "train_diffusion_scripts/multi_gpus_latents.sh",
    "finetune_vae_scripts/multi_gpus.sh",
    "ViZDoomPPO/logs/models/deathmatch_simple/best_model.zip",
    "ViZDoomPPO/vizdoom_requirements.txt",
    "diffusion_requirements.txt",
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.partition(" --")[0])
def test_every_flag_means_what_it_meant(command: str) -> None:
    script, *words = shlex.split(command)
    module = importlib.import_module(script.removesuffix(".py"))
    parsed = module.build_parser().parse_args(words)
    following = dict(zip(words, [*words[1:], "--"], strict=True))
    for flag in (word for word in words if word.startswith("--")):
        expected = "True" if following[flag].startswith("--") else following[flag]
        assert str(getattr(parsed, flag.removeprefix("--"))) == expected, flag
    if hasattr(module, "check_flags"):
        module.check_flags(parsed)  # stage 1, where the shipped policy plays


def test_every_file_that_is_named_there_is_here() -> None:
    assert [name for name in FILES if not (REPOSITORY / name).is_file()] == []
