"""Promises of encode_images.py: which frames become which latents, what a second run does, how bad input ends."""

import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from episode_factory import ACTION_TABLE, flat_frame, write_episode

import encode_images
from command_line import BadInput
from data_loader import WindowDataset, open_latents
from episodes import Episode, find_latents, inspect_episode
from model import Autoencoder, build_autoencoder, load_autoencoder
from presets import get_preset

SCRIPT = Path(encode_images.__file__)
STRIDE = get_preset("smoke").frame_stride  # 4


@pytest.fixture(scope="session")
def autoencoder_folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two random smoke autoencoders of different weights."""
    folders = []
    for seed in range(2):
        torch.manual_seed(seed)
        folders.append(tmp_path_factory.mktemp("autoencoder"))
        autoencoder = build_autoencoder(get_preset("smoke"))
        for parameter in autoencoder.vae.encoder.parameters():
            parameter.data *= 1.7  # so that one grey level more or less shows in the latents
        autoencoder.save(folders[-1])
    return folders


@pytest.fixture
def episodes(tmp_path: Path) -> Path:
    """Three episodes: 9 and 10 rows to train, 13 to validate."""
    base = tmp_path / "episodes"
    write_episode(base / "train/level_0/env_0/episode_000000.parquet", [1, 1, 1, 1, 2, 2, 3, 3, 3])
    write_episode(base / "train/level_1/env_1/episode_000000.parquet", [0] * 10, values=range(100, 110))
    write_episode(base / "eval/level_1/env_0/episode_000000.parquet", [2] * 13, values=range(200, 213))
    return base


def encode(episodes: Path, save_dir: Path, folder: Path, *flags: str) -> None:
    fixed = ["--dataset_basepath", episodes, "--save_dir_path", save_dir, "--model_folder_or_id", folder]
    words = [str(word) for word in (*fixed, "--device", "cpu", *flags)]
    encode_images.main(encode_images.build_parser().parse_args(words))


def expected_moments(autoencoder: Autoencoder, values: list[int]) -> torch.Tensor:
    frames = np.stack([flat_frame(value) for value in values])
    with torch.no_grad():
        return autoencoder.encode_pixels(autoencoder.frames_to_pixels(frames))


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal up to what float16 keeps."""
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=1e-3, atol=1e-4)


def stamps(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in find_latents(folder)}


def changed(before: dict[str, int], after: dict[str, int]) -> list[str]:
    return [name for name in after if before.get(name) != after[name]]


# ------------------------------------------------------------------------------------------------ what is written


def test_a_thinned_folder_gives_every_nth_of_its_episodes_and_the_others_stay_whole(
    tmp_path: Path, autoencoder_folders: list[Path], capsys: pytest.CaptureFixture
) -> None:
    base, latents = tmp_path / "episodes", tmp_path / "latents"
    for number in range(5):
        write_episode(base / f"training/train/level_0/env_0/episode_{number:06}.parquet", [0] * 9)
    for folder in ("training/eval", "explore/train"):
        for number in range(2):
            write_episode(base / f"{folder}/level_0/env_0/episode_{number:06}.parquet", [0] * 9)
    encode(base, latents, autoencoder_folders[0], "--thin", "training/train=2")
    names = [path.relative_to(latents).as_posix() for path in find_latents(latents)]
    assert [name[-5:-3] for name in names if name.startswith("training/train")] == ["00", "02", "04"]
    assert len(names) == 3 + 2 + 2
    with pytest.raises(BadInput, match="--thin played=2: no episode lies under"):
        encode(base, latents, autoencoder_folders[0], "--thin", "played=2")
    for word in ("training", "training=x", "training=0"):
        with pytest.raises(SystemExit):
            encode(base, latents, autoencoder_folders[0], "--thin", word)
        assert f"{word!r} is not FOLDER=N, e.g. training/train=4" in capsys.readouterr().err
    with pytest.raises(BadInput, match="no folder `eval` is held out"):
        encode(base / "explore", latents, autoencoder_folders[0], "--thin", "train=2")


def test_only_the_frames_of_the_stride_are_encoded_each_with_its_action(
    episodes: Path, tmp_path: Path, autoencoder_folders: list[Path]
) -> None:
    encode(episodes, tmp_path / "latents", autoencoder_folders[0], "--batch_size", "2")
    autoencoder = load_autoencoder(autoencoder_folders[0])
    stored = open_latents(tmp_path / "latents/train/level_0/env_0/latent_episode_000000.pt")
    assert close(stored["parameters"], expected_moments(autoencoder, [0, 4, 8]))
    assert not close(stored["parameters"], expected_moments(autoencoder, [0, 5, 8]))  # the test can tell frames apart
    assert stored["parameters"].dtype == torch.float16
    assert stored["actions"].tolist() == [1, 2, 3]
    assert stored["tics"].tolist() == [0, 4, 8]
    assert stored["held"].tolist() == [True, False, False]  # 2 2 3 3 changes; the last row leads nowhere
    assert stored["events"].tolist() == [False, True, True], "its health changes all the time, but not into the first"
    source = episodes / "train/level_0/env_0/episode_000000.parquet"
    assert stored["metadata"] == {
        "format_version": 1,
        "source": str(source.resolve()),
        "source_rows": 9,
        "source_bytes": source.stat().st_size,
        "tics_per_row": STRIDE,
        "tics_per_second": 35.0,
        "action_table": ACTION_TABLE,
        "encoder_sha256": autoencoder.encoder_sha256,
        "posterior": "none",
        "scaling_factor": autoencoder.scaling_factor,
        "preset": "smoke",
        "frame_width": 80,
        "frame_height": 60,
    }


def test_the_tree_mirrors_the_episodes_with_black_and_autoencoder_at_its_root(
    episodes: Path, tmp_path: Path, autoencoder_folders: list[Path], capsys: pytest.CaptureFixture
) -> None:
    encode(episodes, tmp_path / "latents", autoencoder_folders[0], "--dataloader_num_workers", "0")
    assert list(stamps(tmp_path / "latents")) == [
        "eval/level_1/env_0/latent_episode_000000.pt",
        "train/level_0/env_0/latent_episode_000000.pt",
        "train/level_1/env_1/latent_episode_000000.pt",
    ]
    kept = load_autoencoder(tmp_path / "latents")
    black = open_latents(tmp_path / "latents" / "latent_black.pt")
    assert close(black["parameters"], kept.black_moments())
    assert black["metadata"]["encoder_sha256"] == kept.encoder_sha256
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("dataset_basepath: ")
    assert lines[-1].startswith("wrote 3 of 3 latent files (10 frames) under ")  # 3 + 3 + 4
    assert "next: python train_text_to_image.py" in lines[-1]


def test_all_tics_stores_every_row_and_gives_the_windows_the_frames_give(
    episodes: Path, tmp_path: Path, autoencoder_folders: list[Path]
) -> None:
    encode(episodes, tmp_path / "latents", autoencoder_folders[0], "--all_tics")
    paths = find_latents(tmp_path / "latents" / "train")
    assert open_latents(paths[0])["tics"].tolist() == list(range(9))
    sources = sorted((episodes / "train").rglob("*.parquet"))
    latents = WindowDataset(paths, context_length=2, frame_stride=3)
    frames = WindowDataset(sources, context_length=2, frame_stride=3, kind="frames")
    assert len(latents) == len(frames) > 6
    autoencoder = load_autoencoder(autoencoder_folders[0])
    for index in range(len(latents)):
        values = frames[index]["frames"][:, 0, 0, 0].tolist()
        assert close(latents[index]["moments"], expected_moments(autoencoder, values))
        assert latents[index]["actions"].tolist() == frames[index]["actions"].tolist()
        rows = latents.window_rows(index)
        assert latents.source_frames(latents[index]["episode"], rows)[:, 0, 0, 0].tolist() == values


def test_default_latents_give_windows_of_the_strides_that_hold(
    episodes: Path, tmp_path: Path, autoencoder_folders: list[Path]
) -> None:
    encode(episodes, tmp_path / "latents", autoencoder_folders[0])
    dataset = WindowDataset(find_latents(tmp_path / "latents" / "train"), context_length=2, frame_stride=STRIDE)
    windows = [(s["episode"], s["actions"].tolist()) for s in (dataset[i] for i in range(len(dataset)))]
    assert windows == [(0, [0, 1]), (1, [0, 0]), (1, [0, 0])]
    assert dataset.source_frames(1, dataset.window_rows(2))[:, 0, 0, 0].tolist() == [100, 104, 108]


def test_a_file_of_many_games_keeps_them_apart(tmp_path: Path, autoencoder_folders: list[Path]) -> None:
    games = [0] * 6 + [1] * 7
    write_episode(tmp_path / "data" / "train-0.parquet", [1] * 13, legacy="after", games=games, as_struct=True)
    encode(tmp_path / "data", tmp_path / "latents", autoencoder_folders[0])
    stored = open_latents(tmp_path / "latents" / "latent_train-0.pt")
    assert stored["tics"].tolist() == [0, 4, 0, 4]  # 5 and 6 usable rows
    dataset = WindowDataset(find_latents(tmp_path / "latents"), context_length=2, frame_stride=STRIDE)
    assert [dataset.window_rows(i).tolist() for i in range(len(dataset))] == [[-1, 0, 1], [-1, 2, 3]]
    assert dataset.source_frames(0, [2, 3])[:, 0, 0, 0].tolist() == [6, 10]


# ------------------------------------------------------------------------------------------------ run again, in parts


def test_a_second_run_encodes_only_what_is_missing_or_changed(
    episodes: Path, tmp_path: Path, autoencoder_folders: list[Path], capsys: pytest.CaptureFixture
) -> None:
    latents = tmp_path / "latents"

    def again(*flags: str, folder: Path = autoencoder_folders[0]) -> list[str]:
        before = stamps(latents) if latents.exists() else {}
        capsys.readouterr()
        encode(episodes, latents, folder, *flags)
        written = changed(before, stamps(latents))
        assert f"wrote {len(written)} of " in capsys.readouterr().out.splitlines()[-1]
        return [str(Path(name).parent) for name in written]

    everything = ["eval/level_1/env_0", "train/level_0/env_0", "train/level_1/env_1"]
    assert again() == everything
    assert again() == []
    assert again("--dtype", "bf16") == []  # the same encoder
    write_episode(episodes / "train/level_1/env_1/episode_000000.parquet", [0] * 11)
    assert again() == ["train/level_1/env_1"]
    (latents / "train/level_0/env_0/latent_episode_000000.pt").write_bytes(b"cut short")
    assert again() == ["train/level_0/env_0"]
    assert again("--all_tics") == everything
    assert again(folder=autoencoder_folders[1]) == everything
    new = load_autoencoder(latents)
    assert new.encoder_sha256 == load_autoencoder(autoencoder_folders[1]).encoder_sha256
    assert close(open_latents(latents / "latent_black.pt")["parameters"], new.black_moments())


@pytest.mark.parametrize("num_chunks", [1, 2, 5])
def test_chunks_cover_every_episode_exactly_once(
    episodes: Path, tmp_path: Path, autoencoder_folders: list[Path], num_chunks: int
) -> None:
    latents, seen = tmp_path / "latents", []
    for chunk in range(num_chunks):
        before = stamps(latents) if list(latents.rglob("latent_episode*")) else {}
        encode(episodes, latents, autoencoder_folders[0], "--num_chunks", str(num_chunks), "--chunk_id", str(chunk))
        seen += changed(before, stamps(latents))
    assert sorted(seen) == [
        "eval/level_1/env_0/latent_episode_000000.pt",
        "train/level_0/env_0/latent_episode_000000.pt",
        "train/level_1/env_1/latent_episode_000000.pt",
    ]


def test_a_run_that_dies_leaves_whole_files_only_and_goes_on(
    episodes: Path, tmp_path: Path, autoencoder_folders: list[Path], capsys: pytest.CaptureFixture
) -> None:
    broken = episodes / "train/level_0/env_0/episode_000000.parquet"
    write_episode(broken, [0] * 9, frames=[flat_frame(0)] * 8 + [flat_frame(8, 8, 8)])
    with pytest.raises(BadInput, match="frame of row 8 is 8x8") as caught:
        encode(episodes, tmp_path / "latents", autoencoder_folders[0], "--batch_size", "1")
    assert str(broken) in str(caught.value)
    files = [path for path in (tmp_path / "latents").rglob("*") if path.is_file() and path.suffix != ".json"]
    assert sorted(path.name for path in files) == [
        "diffusion_pytorch_model.safetensors",
        "latent_black.pt",
        "latent_episode_000000.pt",
    ]
    leftover = tmp_path / "latents/train/level_0/env_0/.latent_episode_000000.pt.partial-00c0ffee"
    leftover.write_bytes(b"from a killed run")
    write_episode(broken, [0] * 9)
    encode(episodes, tmp_path / "latents", autoencoder_folders[0])
    assert "wrote 2 of 3 latent files" in capsys.readouterr().out.splitlines()[-1]
    assert not leftover.exists()


# ------------------------------------------------------------------------------------------------ memory


class FlatAutoencoder:
    """Stands for the network where only memory counts: the mean of each frame."""

    def frames_to_pixels(self, frames: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(frames).permute(0, 3, 1, 2).float()

    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((1, 2, 3), keepdim=True).expand(-1, 8, 16, 20)


def encoding_peak_bytes(path: Path, output: Path) -> int:
    tracemalloc.start()
    try:
        encode_images.encode_all([(inspect_episode(path), output)], FlatAutoencoder(), {}, 1, 16, 1)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_episode(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    paths = [
        write_episode(tmp_path / f"{n}.parquet", np.zeros(n), frames=[noise] * n, width=80, height=60)
        for n in (128, 2048)
    ]
    short, long = (encoding_peak_bytes(path, tmp_path / f"{path.stem}.pt") for path in paths)
    assert short > 16 * 60 * 80 * 3  # a batch of frames is counted
    assert long < short + 2048 * 100  # some bytes a row: actions, tics; a frame has 14400, its moments 5120
    assert open_latents(tmp_path / "2048.pt")["parameters"].shape == (2048, 8, 16, 20)


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_few_batches_wait_decoded_however_slow_the_network(num_workers: int) -> None:
    started: list[int] = []

    def batch(number: int) -> Callable[[], int]:
        return lambda: started.append(number) or number

    stream = encode_images.decoded_ahead(((None, False, batch(number)) for number in range(50)), num_workers)
    for taken, (_, _, number) in enumerate(stream):
        assert number == taken  # in order
        time.sleep(0.001)
        assert len(started) <= taken + 1 + num_workers
    assert sorted(started) == list(range(50))


def test_decoding_in_threads_changes_nothing(episodes: Path, tmp_path: Path, autoencoder_folders: list[Path]) -> None:
    for workers in ("0", "3"):
        flags = ("--dataloader_num_workers", workers, "--batch_size", "1")
        encode(episodes, tmp_path / workers, autoencoder_folders[0], *flags)
    for one, other in zip(find_latents(tmp_path / "0"), find_latents(tmp_path / "3"), strict=True):
        assert torch.equal(open_latents(one)["parameters"], open_latents(other)["parameters"])


def test_latents_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = write_episode(tmp_path / "episode_0.parquet", [0] * 5)
    too_large = torch.full((2, 1, 2, 2), 1e9)  # infinite in float16
    broken = SimpleNamespace(frames_to_pixels=torch.from_numpy, encode_pixels=lambda pixels: too_large[: len(pixels)])
    with pytest.raises(BadInput, match="--dtype"):
        encode_images.encode_all([(Episode(path).info, tmp_path / "out.pt")], broken, {}, 1, 2, 0)
    assert not (tmp_path / "out.pt").exists()


# ------------------------------------------------------------------------------------------------ the command line


def run_script(*flags: object) -> tuple[int, str, str, float]:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *(str(flag) for flag in flags)], capture_output=True, text=True, cwd="/"
    )
    return done.returncode, done.stdout, done.stderr, time.monotonic() - started


def test_the_real_command_line_encodes_from_any_directory(
    episodes: Path, tmp_path: Path, autoencoder_folders: list[Path]
) -> None:
    code, out, err, _ = run_script(
        "--dataset_basepath", episodes, "--save_dir_path", tmp_path / "latents", "--batch_size", 4,
        "--model_folder_or_id", autoencoder_folders[0], "--dataloader_num_workers", 1, "--device", "cpu",
    )  # fmt: skip
    assert code == 0, err
    assert len(find_latents(tmp_path / "latents")) == 3
    assert "device: cpu" in out and out.splitlines()[-1].startswith("wrote 3 of 3")
    assert "10/10" in err and "frame/s" in err


def spoil(kind: str, tmp_path: Path, folder: Path) -> list[object]:
    """Flags of a command line that is wrong in one way."""
    data, save, model, more = tmp_path / "data", tmp_path / "latents", folder, []
    write_episode(data / "episode_0.parquet", [0] * 9)
    bad = data / "episode_7.parquet"
    if kind == "no episodes":
        data = tmp_path / "empty"
        data.mkdir()
    elif kind == "truncated":
        write_episode(bad, [0] * 99)
        bad.write_bytes(bad.read_bytes()[:-100])
    elif kind == "mixed sizes":
        write_episode(bad, [0] * 9, width=20, height=12)
    elif kind == "empty episode":
        write_episode(bad, [])
    elif kind == "short episode":
        write_episode(bad, [0] * STRIDE)
    elif kind == "unknown action":
        write_episode(bad, [0, 4, 0, 0, 0, 0])
    elif kind == "stride":
        bad = data / "episode_0.parquet"
        write_episode(bad, [0] * 9, tics_per_row=3)
    elif kind == "not a model":
        model = tmp_path / "data"
    elif kind == "no such model":
        model = tmp_path / "nowhere"
    elif kind == "unknown preset":
        more = ["--preset", "huge"]
    elif kind == "save_dir is a file":
        save = data / "episode_0.parquet"
    elif kind == "chunk":
        more = ["--num_chunks", 2, "--chunk_id", 2]
    flags = ["--dataset_basepath", data, "--save_dir_path", save, "--model_folder_or_id", model, "--device", "cpu"]
    return [*flags, *more]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("no episodes", "load_model_generate_dataset.py"),
        ("truncated", "episode_7.parquet is not a complete parquet"),
        ("mixed sizes", "episode_7.parquet: frames are 20x12, but 16x12"),
        ("empty episode", "episode_7.parquet is an empty episode"),
        ("short episode", "episode_7.parquet is too short"),
        ("unknown action", "episode_7.parquet: action id 4 is outside"),
        ("stride", "every 3 tics recorded"),
        ("not a model", "not an autoencoder folder"),
        ("no such model", "no such folder"),
        ("unknown preset", "--preset huge"),
        ("save_dir is a file", "is a file"),
        ("chunk", "--chunk_id 2"),
    ],
)
def test_bad_input_ends_in_one_line_with_exit_2_before_torch_is_imported(
    tmp_path: Path, autoencoder_folders: list[Path], kind: str, said: str
) -> None:
    code, _, err, seconds = run_script(*spoil(kind, tmp_path, autoencoder_folders[0]))
    assert code == 2
    assert said in err and err.startswith("encode_images.py: ") and err.count("\n") == 1
    assert not (tmp_path / "latents").exists()
    assert seconds < 2


def test_help_answers_without_torch() -> None:
    code, out, _, seconds = run_script("--help")
    assert code == 0 and seconds < 2
    assert "--num_chunks" in out and "Stage 2" in out
