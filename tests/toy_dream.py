"""The toy world learned through the real command lines, once for all tests of a run: a world model that obeys keys."""

import fcntl
from pathlib import Path

from command import REPOSITORY, succeed

EPISODES, EPISODE_STEPS = 24, 40
TRAINING = ("--report_to", "none", "--dataloader_num_workers", 0, "--device", "cpu", "--ema_decay", 0.99)
TRAINING += ("--validation_steps", 1_000_000, "--checkpointing_steps", 1_000_000, "--lr_warmup_steps", 20)


def learned_toy_world(base: Path) -> Path:
    """The folder with `play`, `autoencoder`, `latents` and the world model's `run`; made by whoever comes first.

    base: pytest's basetemp of this process; several processes of one run share the folder above theirs."""
    shared = base.parent if base.name.startswith("popen-") else base
    folder = shared / "learned_toy_world"
    with open(shared / "learned_toy_world.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "finished").exists():
            _learn(folder)
            (folder / "finished").touch()
    return folder


def _learn(base: Path) -> None:
    """Every stage once."""
    play, autoencoder, latents, run = (base / name for name in ("play", "autoencoder", "latents", "run"))
    succeed(
        "load_model_generate_dataset.py",
        *("--env", "toy_world:Square-v0", "--policy", "random", "--episodes", EPISODES, "--output_dir", play),
        *("--episode_tics", EPISODE_STEPS, "--num_workers", 1, "--image_format", "png"),
        extra={"PYTHONPATH": str(REPOSITORY / "tests")},
    )
    succeed(
        "finetune_vae.py",
        *("--dataset_basepath", play, "--output_dir", autoencoder, "--train_from_scratch", "--preset", "smoke"),
        *("--max_train_steps", 200, "--learning_rate", 3e-3, "--num_validation_frames", 16, *TRAINING),
    )
    succeed(
        "encode_images.py",
        *("--dataset_basepath", play, "--save_dir_path", latents, "--model_folder_or_id", autoencoder, "--all_tics"),
        *("--dataloader_num_workers", 0, "--device", "cpu"),
    )
    succeed(
        "train_text_to_image.py",
        *("--dataset_basepath", latents, "--output_dir", run, "--preset", "smoke", "--frame_stride", 1),
        *("--max_train_steps", 400, "--learning_rate", 3e-3, "--train_batch_size", 16),
        *("--num_validation_windows", 16, *TRAINING),
    )
