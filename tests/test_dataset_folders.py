"""Promises of dataset_folders.py: a data set's Hub id is as good as a folder, and what cannot be had is one line."""

from pathlib import Path

import pytest
from command import refusal, run_script, succeed
from episode_factory import write_episode
from hub_server import local_hub

from command_line import BadInput
from dataset_folders import dataset_folder
from episodes import find_episodes


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hub's data sets: one with games, in the layout that `push_to_hub` writes, and one without."""
    root = tmp_path_factory.mktemp("hub")
    for number in range(2):
        path = root / f"datasets/owner/play/data/train-0000{number}-of-00002.parquet"
        write_episode(path, [0, 1, 2, 1, number], legacy="after", games=[0, 0, 0, 1, 1], as_struct=True)
    (root / "datasets/owner/play/loader.py").write_text("raise SystemExit('code of a data set was run')")
    (root / "datasets/owner/pictures").mkdir()
    (root / "datasets/owner/pictures/README.md").write_text("no games")
    return root


def test_a_folder_or_file_is_itself_and_a_path_that_is_missing_is_left_to_whoever_reads_it(tmp_path: Path) -> None:
    path = write_episode(tmp_path / "a/episode_0.parquet", [0, 1])
    assert dataset_folder(tmp_path, "episodes") == tmp_path and dataset_folder(path, "episodes") == path
    assert dataset_folder(tmp_path / "b", "episodes") == tmp_path / "b"
    with pytest.raises(BadInput, match="b is not a folder"):
        find_episodes(dataset_folder(tmp_path / "b", "episodes"))


def test_a_hub_id_is_downloaded_without_its_code_once_and_is_there_offline(hub: Path, tmp_path: Path) -> None:
    with local_hub(hub) as server:
        online = server.environment(tmp_path / "home", token=None)
        done = run_script("check_data.py", "owner/play", extra=online)
        assert "2 episodes files in order, 0 broken, 4 games" in done.stdout, done.stderr[-2000:]
        assert sorted(server.seen) == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
        for name, said in (
            ("owner/pictures", "has no .parquet or .pt files"),
            ("owner/none", "shows no such data set"),
        ):
            done = run_script("check_data.py", name, extra=online)
            assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(f"check_data.py: {name}: "), done
            assert said in done.stderr.splitlines()[-1]
    assert "4 games" in run_script("check_data.py", "owner/play", extra={**online, "HF_HUB_OFFLINE": "1"}).stdout


@pytest.mark.slow
def test_encoding_a_hub_id_makes_the_tree_of_its_folder(hub: Path, tmp_path: Path) -> None:
    from tiny_models import saved, tiny_autoencoder

    words = (
        "--save_dir_path",
        tmp_path / "latents",
        "--model_folder_or_id",
        saved(tiny_autoencoder(), tmp_path / "vae"),
    )
    with local_hub(hub) as server:
        extra = server.environment(tmp_path / "home", token=None)
        succeed("encode_images.py", "--dataset_basepath", "owner/play", *words, "--frame_stride", 1, extra=extra)
    assert (tmp_path / "latents/data/latent_train-00001-of-00002.pt").is_file()


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("encode_images.py", ("--save_dir_path", "latents")),
        ("finetune_vae.py", ("--output_dir", "run", "--train_from_scratch", "--preset", "smoke")),
        ("train_text_to_image.py", ("--output_dir", "run", "--preset", "smoke")),
    ],
)
def test_every_script_says_in_one_line_that_the_hub_is_out_of_reach(
    script: str, flags: tuple[str, ...], tmp_path: Path
) -> None:
    line = refusal(script, "--dataset_basepath", "owner/play", *flags, cwd=tmp_path)
    assert "owner/play: no such folder, and as a data set it cannot be fetched from the Hub" in line
    assert list(tmp_path.iterdir()) == []
