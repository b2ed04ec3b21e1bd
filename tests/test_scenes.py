"""Promises about depth and camera: recorded beside the play and changing nothing of it, carried along with the latents,
and telling where the next real picture comes from; and that the motion model learns its flow from them."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from small_runs import call, logged, random_autoencoder
from stage_one import GENERATE
from stage_one import call as call_stage1
from torch import Tensor

from data_loader import WindowDataset
from episodes import METADATA_KEY, Episode, find_latents
from model_folders import Geometry
from motion import MotionModel, warp
from scenes import camera_motions, camera_of, read_scene, scene_flow

PLAY = ["--policy", "explore", "--level", "2", "--bots", "2", "--episodes", "2", "--episode_tics", "700"]
PLAY += ["--record_stride", "2", "--num_workers", "1", "--screen_resolution", "RES_160X120"]
CAMERA = {"units_per_depth": 8.0, "focal_x": 1.0, "focal_y": 1.5, "horizon": -0.25}
SHIPPED = Path(__file__).resolve().parent.parent / "assets/models/small"
WHOLE = Geometry("small", 160, 120, 160, 128)


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes of 350 rows, with depth."""
    folder = tmp_path_factory.mktemp("play")
    done = call_stage1(GENERATE, *PLAY, "--record_depth", "--output_dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def latents(play: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The play encoded for `smoke`: 80x60 in 80x64, cells of 8 pixels."""
    folder = tmp_path_factory.mktemp("encoded") / "latents"
    autoencoder = random_autoencoder(tmp_path_factory.getbasetemp())
    words = ("--dataset_basepath", play, "--save_dir_path", folder, "--model_folder_or_id", autoencoder)
    call("encode_images.py", *words, "--device", "cpu", "--dataloader_num_workers", 0)
    return folder


def pose(x: float, y: float, z: float = 40.0, angle: float = 0.0) -> Tensor:
    return torch.tensor([x, y, z, angle])


def flow_between(last: Tensor, following: Tensor, depth: int = 9) -> tuple[Tensor, Tensor]:
    """The flow (2, 32, 40) before a wall that fills the picture, and where it is known (32, 40)."""
    flow, known = scene_flow(
        torch.full((1, 32, 40), depth, dtype=torch.uint8), torch.stack([last, following])[None], CAMERA, 2
    )
    return flow[0], known[0, 0]


# ---------------------------------------------------------------------------------------------------------- recorded


def test_recording_depth_changes_nothing_else(play: Path, tmp_path: Path) -> None:
    done = call_stage1(GENERATE, *PLAY, "--output_dir", tmp_path)
    assert done.returncode == 0, done.stderr
    for number in range(2):
        name = f"train/level_2/explore/episode_{number:06d}.parquet"
        with_depth, without = pq.read_table(play / name), pq.read_table(tmp_path / name)
        assert with_depth.select(without.column_names).equals(without)
        assert set(with_depth.column_names) - set(without.column_names) == {"depth", "camera_z"}
    camera = json.loads(with_depth.schema.metadata[METADATA_KEY])["camera"]
    assert camera["horizon"] == pytest.approx(5 / 12), (
        "the middle of what is above the status bar, a sixth of the screen"
    )
    assert "camera" not in json.loads(without.schema.metadata[METADATA_KEY])
    other = call_stage1(GENERATE, *PLAY, "--output_dir", play)  # one folder holds one kind
    assert other.returncode == 2 and "record_depth True, this run asks for None" in other.stderr


@pytest.mark.parametrize(
    ("flags", "said"), [(["--env", "CartPole-v1"], "--env CartPole-v1"), (["--output", "gif"], "gif")]
)
def test_what_has_no_depth_is_refused(flags: list[str], said: str, tmp_path: Path) -> None:
    done = call_stage1(GENERATE, "--policy", "random", *flags, "--record_depth", "--output_dir", tmp_path / "out")
    assert done.returncode == 2 and said in done.stderr and "--record_depth" in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_agents_training_records_its_depth_too(tmp_path: Path) -> None:
    from stage_one import ONE_GAME, TRAIN

    flags = [*ONE_GAME, "--total_timesteps", "64", "--record_stride", "2", "--record_depth"]
    done = call_stage1(TRAIN, "--out_base_dir", tmp_path, *flags)
    assert done.returncode == 0, done.stderr
    episode = Episode(next(tmp_path.rglob("train/**/episode_*.parquet")))
    scene = read_scene(episode, np.arange(episode.info.rows), WHOLE, (16, 20))
    assert scene["depth"].shape == (episode.info.rows, 32, 40) and scene["depth"][:, :20].any()
    other = call_stage1(TRAIN, "--out_base_dir", tmp_path, *flags[:-1], "--resume")
    assert other.returncode == 2 and "record_depth" in other.stderr


# ---------------------------------------------------------------------------------------------------------- geometry


def test_walking_opens_the_view_from_the_horizon_and_the_nearer_the_faster() -> None:
    flow, known = flow_between(pose(0, 0), pose(16, 0))
    x = (torch.arange(40) + 0.5) / 20 - 1
    # A wall now 76 units away was 92 away: what is at x was at x * 76 / 92.
    assert torch.allclose(flow[0], (x * (76 / 92 - 1)).expand(32, -1), atol=1e-5) and known.all()
    y = (torch.arange(32) + 0.5) / 16 - 1
    assert torch.allclose(flow[1], ((y + 0.25) * (76 / 92 - 1))[:, None].expand(-1, 40), atol=1e-5)
    near, _ = flow_between(pose(0, 0), pose(16, 0), depth=4)
    assert (near[0].abs() >= flow[0].abs()).all() and near[0].abs().mean() > 1.4 * flow[0].abs().mean()
    back, _ = flow_between(pose(16, 0), pose(0, 0))
    assert (back[0] * flow[0] <= 0).all()


def test_turning_left_brings_in_what_was_on_the_left_and_walks_are_seen_from_where_one_looks() -> None:
    flow, _ = flow_between(pose(5, 7, angle=350), pose(5, 7, angle=358))  # 8 degrees to the left, over north's zero too
    middle = flow[0][:, 19:21].mean()
    assert float(middle) == pytest.approx(-np.tan(np.deg2rad(8)), abs=2e-3)
    wrapped, _ = flow_between(pose(5, 7, angle=356), pose(5, 7, angle=4))
    assert torch.allclose(wrapped, flow, atol=1e-4)
    north, _ = flow_between(pose(0, 0, angle=90), pose(0, 16, angle=90))
    assert torch.allclose(north, flow_between(pose(0, 0), pose(16, 0))[0], atol=1e-5)
    right, _ = flow_between(pose(0, 0, angle=90), pose(9.5, 0, angle=90))  # east, looking north
    assert torch.allclose(right[0], torch.full((32, 40), 9.5 / 76), atol=1e-5)  # what is here now was further right
    higher, _ = flow_between(pose(0, 0, 40), pose(0, 0, 44))
    assert torch.allclose(higher[1], torch.full((32, 40), -1.5 * 4 / 76), atol=1e-5)


def test_weapon_and_status_bar_stay_and_what_was_out_of_sight_is_not_known() -> None:
    depth = torch.full((1, 32, 40), 9, dtype=torch.uint8)
    depth[:, 24:] = 0
    flow, known = scene_flow(depth, torch.stack([pose(0, 0), pose(16, 0)])[None], CAMERA, 2)
    assert not flow[:, :, 24:].any() and flow[:, :, :24].any() and known.all()
    _, known = flow_between(pose(200, 0), pose(0, 0))
    assert not known.any(), "nobody walks 200 units in a stride: risen elsewhere"
    _, known = flow_between(pose(78, 0), pose(0, 0))
    assert not known.any(), "the wall was behind the camera"


def test_camera_motions_are_as_the_camera_saw_them() -> None:
    poses = torch.stack([pose(0, 0, 40, 90), pose(0, 16, 44, 98), pose(0, 16, 44, 90), pose(900, 0, 44, 90)])[None]
    motions, is_walked = camera_motions(poses, 2)
    assert torch.allclose(motions[0, 0], torch.tensor([1.0, 0, 1, 1]), atol=1e-5)
    assert torch.allclose(motions[0, 1], torch.tensor([0.0, 0, 0, -1]), atol=1e-5)
    assert is_walked[0, :, 0].tolist() == [True, True, False]
    assert camera_motions(poses, 25)[1].all(), "in 25 tics it could"


def test_the_last_real_picture_so_moved_is_nearer_to_the_next_real_one(play: Path) -> None:
    episode = Episode(play / "train/level_2/explore/episode_000000.parquet")
    rows = np.arange(episode.info.rows)
    scene = {name: torch.from_numpy(each) for name, each in read_scene(episode, rows, WHOLE, (16, 20)).items()}
    camera = camera_of(episode.info.metadata["camera"], WHOLE)
    pixels = torch.from_numpy(episode.read_frames(rows)).permute(0, 3, 1, 2) / 127.5 - 1
    pixels = torch.nn.functional.pad(pixels, (0, 0, 0, 8), value=-1)
    poses = torch.stack([scene["poses"][:-1], scene["poses"][1:]], dim=1)
    flow, known = scene_flow(scene["depth"][1:], poses, camera, 2)
    motions = camera_motions(scene["poses"][None], 2)[0][0].abs()
    moved = warp(pixels[:-1], flow)
    held_db, moved_db = (
        -10 * ((each - pixels[1:])[:, :, :100] / 2).square().mean(dim=(1, 2, 3)).add(1e-6).log10()
        for each in (pixels[:-1], moved)
    )
    for name, some in (
        ("walks", motions[:, 0] > 0.5),
        ("turns", motions[:, 3] > 0.5),
        ("stands", motions.amax(1) < 0.01),
    ):
        gain = float((moved_db - held_db)[some].mean())
        assert some.sum() > 20 and (abs(gain) < 0.2 if name == "stands" else gain > 2), (name, int(some.sum()), gain)
    assert float(known.float().mean()) > 0.9


# -------------------------------------------------------------------------------------------------- encoded and learned


def test_latents_carry_depth_and_poses_of_their_rows(play: Path, latents: Path) -> None:
    paths = find_latents(latents)
    dataset = WindowDataset(paths, context_length=4, frame_stride=4, with_scene=True)
    episode = Episode(play / "train/level_2/explore/episode_000000.parquet")
    smoke = Geometry("smoke", 80, 60, 80, 64)
    whole = read_scene(episode, np.arange(0, episode.info.rows, 2), smoke, (8, 10))  # every fourth tic
    assert dataset.camera == camera_of(episode.info.metadata["camera"], smoke)
    assert whole["depth"].shape == (175, 16, 20) and not whole["depth"][:, 15:].any(), "nothing in the padding"
    assert whole["depth"][:, 0].any() and not whole["depth"][:, 13:].any(), "the status bar has no depth"
    for index in (0, 40):
        item, rows = dataset[index], dataset.window_rows(index)
        assert np.array_equal(item["depth"], whole["depth"][rows[-1]])
        assert np.array_equal(item["poses"], whole["poses"][np.maximum(rows, 0)])  # before the game nothing moved
    assert "depth" not in WindowDataset(paths, context_length=4, frame_stride=4)[0]


def test_without_depth_in_every_file_none_is_known(play: Path, latents: Path, tmp_path: Path) -> None:
    stored = torch.load(find_latents(latents)[0], weights_only=True)
    for name in ("depth", "poses"):
        del stored[name]
    del stored["metadata"]["camera"]
    (tmp_path / "latent_black.pt").write_bytes((latents / "latent_black.pt").read_bytes())
    torch.save(stored, tmp_path / "latent_episode_000000.pt")
    (tmp_path / "latent_episode_000001.pt").write_bytes(find_latents(latents)[1].read_bytes())
    dataset = WindowDataset(find_latents(tmp_path), context_length=4, frame_stride=4, with_scene=True)
    assert dataset.camera is None and "depth" not in dataset[0]


@pytest.mark.skipif(not (SHIPPED / "config.json").exists(), reason="no model ships, and random weights see nothing")
def test_a_motion_model_learns_the_flow_of_the_scene(
    play: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Learning from one episode, measured on another: an error well below the flow's own length, as of a still one."""
    encoded = ("--dataset_basepath", play, "--save_dir_path", tmp_path / "latents", "--model_folder_or_id", SHIPPED)
    call("encode_images.py", *encoded, "--device", "cpu", "--dataloader_num_workers", 0)
    words = ("--dataset_basepath", tmp_path / "latents", "--output_dir", tmp_path / "run", "--batch_size", 8)
    words += ("--learning_rate", 0.003, "--lr_warmup_steps", 0, "--num_validation_windows", 48, "--device", "cpu")
    words += ("--report_to", "none", "--dataloader_num_workers", 0, "--max_train_steps", 110, "--seed", 0)
    call("train_motion.py", *words)
    assert "windows with depth" in capsys.readouterr().out
    last = [line for line in logged(tmp_path / "run") if "flow_error_pixels" in line][-1]
    assert last["flow_pixels"] > 1 and last["flow_error_pixels"] < 0.85 * last["flow_pixels"], last


def test_a_motion_model_goes_on_with_as_many_frames_as_it_looked_at(latents: Path, tmp_path: Path) -> None:
    """What it learns of each seen frame's camera is of as many frames."""
    MotionModel(4, 8, 10, num_actions=54, seen_frames=2).save_pretrained(tmp_path / "short")
    words = ("--dataset_basepath", latents, "--output_dir", tmp_path / "run", "--batch_size", 4, "--device", "cpu")
    words += ("--pretrained_model_name_or_path", tmp_path / "short", "--max_train_steps", 1, "--report_to", "none")
    own = ("--own_frames", 2, "--own_frames_share", 0.999)
    call("train_motion.py", *words, "--num_validation_windows", 4, "--dataloader_num_workers", 0, *own)
    assert MotionModel.from_pretrained(tmp_path / "run/motion").config.seen_frames == 2
