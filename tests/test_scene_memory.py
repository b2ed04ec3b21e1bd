"""Promises of the memory of a map: rays end where floor, ceiling and walls are, as the flow of scenes.py has it; the
camera's motions come back as poses; and from recorded play it learns what the map looks like."""

from pathlib import Path

import pytest
import torch
from small_runs import call, changed_words, logged, random_autoencoder, random_latents
from test_command_lines import quick_refusal
from test_scenes import CAMERA, SHIPPED, latents, play  # noqa: F401  the last two are fixtures
from torch import Tensor

from command_line import BadInput
from data_loader import WindowDataset
from episodes import find_latents
from scene_memory import CELL_UNITS, EYE_UNITS, PAST_MOTIONS, SceneMemory
from scenes import after_motions, camera_motions, scene_flow

ROWS, COLUMNS = 40, 50  # of the map: 320 by 400 units
ROOM = 128.0  # high


def room() -> SceneMemory:
    """A memory of one room, 240 by 320 units, its floor at 0, walls of 40 units around it."""
    torch.manual_seed(0)
    made = SceneMemory(
        3, 80, 64, view_rows=52, camera=CAMERA, corner=(-200.0, -160.0), grid=(ROWS, COLUMNS),
        first_heights=(400.0, ROOM), frame_stride=2,
    )  # fmt: skip
    with torch.no_grad():
        made.heights[:, 0, 5:-5, 5:-5] = 0
    return made.requires_grad_(False).eval()


def pose(x: float = 0, y: float = 0, angle: float = 0, z: float = EYE_UNITS) -> Tensor:
    return torch.tensor([[x, y, z, angle]], dtype=torch.float32)


@pytest.mark.parametrize(("angle", "wall"), [(0, 160), (90, 120), (180, 160), (270, 120)])
def test_a_ray_ends_at_floor_ceiling_or_wall(angle: float, wall: float) -> None:
    memory = room()
    y = torch.tensor([CAMERA["horizon"], 0.9, -0.999])
    up = (CAMERA["horizon"] - y) / CAMERA["focal_y"]
    level, down, above = memory.cast(pose(angle=angle), torch.zeros(1), y)[0, :, 0].tolist()
    assert level == pytest.approx(wall, abs=CELL_UNITS)
    assert down == pytest.approx(min(EYE_UNITS / -float(up[1]), wall), rel=0.05)
    assert above == pytest.approx(min((ROOM - EYE_UNITS) / float(up[2]), wall), rel=0.05)
    points = memory.points(pose(angle=angle), torch.tensor([[[level], [down], [above]]]), torch.zeros(1), y)
    assert points[0, 1, 0, 2] == pytest.approx(0, abs=2) and memory.solid(points).abs().max() < 400
    assert memory.solid(torch.tensor([[0.0, 0, 50], [0, 0, -5], [0, 0, ROOM + 9], [170, 0, 50]])).sign().tolist() == [
        -1,
        1,
        1,
        1,
    ]


def test_its_points_move_through_the_picture_as_the_flow_of_the_scene_has_it() -> None:
    memory = room()
    x, y = memory.picture_places()
    last, following = pose(-40, 10, 20), pose(-26, 14, 27, z=43)
    depth = torch.full((1, 64, 80), 9, dtype=torch.uint8)
    flow, known = scene_flow(depth, torch.stack([last, following], dim=1), CAMERA, 2)
    points = memory.points(following, torch.full((1, len(y), len(x)), CAMERA["units_per_depth"] * 9.5), x, y)[0]
    east, north, up = (points - last[0, :3]).unbind(2)
    angle = last[0, 3].deg2rad()
    ahead = east * angle.cos() + north * angle.sin()
    was_x = CAMERA["focal_x"] * (east * angle.sin() - north * angle.cos()) / ahead
    was_y = CAMERA["horizon"] - CAMERA["focal_y"] * up / ahead
    known, flow = known[0, 0, : len(y)], flow[0, :, : len(y)]
    assert known.float().mean() > 0.8
    assert torch.allclose((was_x - x)[known], flow[0][known], atol=1e-4)
    assert torch.allclose((was_y - y[:, None])[known], flow[1][known], atol=1e-4)


def test_motions_and_poses_tell_the_same() -> None:
    first = torch.tensor([[100.0, -50, 41, 350], [0, 0, 30, 90]])
    second = torch.tensor([[110.0, -45, 43, 8], [-7, 3, 32, 85]])
    motions, _ = camera_motions(torch.stack([first, second], dim=1), 2)
    assert torch.allclose(after_motions(first, motions[:, 0]), second, atol=1e-3)


def test_a_view_has_colours_above_the_status_bar_and_nothing_below() -> None:
    view = room().look(torch.cat([pose(), pose(30, 20, 77)]))
    assert tuple(view.pixels.shape) == (2, 3, 64, 80) and tuple(view.ahead.shape) == (2, 64, 80)
    assert view.pixels.abs().max() <= 1 and view.pixels[:, :, :52].std() > 0
    assert not view.pixels[:, :, 52:].any() and not view.ahead[:, 52:].any() and (view.ahead[:, :52] > 0).all()


def test_a_game_of_many_walks_each_by_its_own_keys_and_past() -> None:
    memory = room()
    torch.nn.init.normal_(memory.push[-1].weight, std=0.1)
    poses = torch.stack([torch.cat([pose(4 * i, 0), pose(0, 3 * i, 90)]) for i in range(PAST_MOTIONS + 1)], dim=1)
    actions = torch.randint(0, 3, (2, PAST_MOTIONS + 3))
    motions = memory.walk(poses, actions)
    assert tuple(motions.shape) == (2, 3, 4)
    alone = torch.cat([memory.walk(poses[i : i + 1], actions[i : i + 1]) for i in range(2)])
    assert torch.allclose(motions, alone, atol=1e-5)
    following = memory.next_pose(poses, actions[:, : PAST_MOTIONS + 1])
    assert torch.allclose(following, after_motions(poses[:, -1], motions[:, 0]), atol=1e-3)
    other = actions.clone()
    other[0, PAST_MOTIONS] = (other[0, PAST_MOTIONS] + 1) % 3
    changed = memory.next_pose(poses, other[:, : PAST_MOTIONS + 1])
    assert not torch.allclose(changed[0], following[0]) and torch.allclose(changed[1], following[1])


# --------------------------------------------------------------------------------------------------------- the trainer


def words_of(folder: Path, output_dir: Path, steps: int, **changed: object) -> tuple[object, ...]:
    flags = {"batch_size": 2, "num_validation_windows": 8, "learning_rate": 0.002, "report_to": "none"}
    flags |= {"lr_warmup_steps": 0, "dataloader_num_workers": 0, "device": "cpu", "max_train_steps": steps, **changed}
    given = (word for name, value in flags.items() for word in (f"--{name}", value))
    return "--dataset_basepath", folder, "--output_dir", output_dir, *given


def test_a_run_resumes_exactly_and_leaves_a_memory_and_its_views(
    latents: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, ends in (("whole", [4]), ("resumed", [2, 4])):
        for end in ends:
            call("train_scene_memory.py", *words_of(latents, tmp_path / name, end, checkpointing_steps=2))
    ends = [tmp_path / name / "checkpoint-4/model.safetensors" for name in ("whole", "resumed")]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    said = capsys.readouterr().out
    assert "resumed from" in said and "after 4 steps, medians of 8 held-out views: view_psnr_db" in said
    memory = SceneMemory.from_pretrained(tmp_path / "whole/scene_memory")
    assert memory.config.num_actions == 54 and memory.config.view_rows == 48
    dataset = WindowDataset(find_latents(latents), context_length=4, frame_stride=4, with_scene=True)
    for number in range(2):
        poses, _ = dataset.scene(number)
        floor, ceiling = memory.height(poses[:, 0], poses[:, 1])
        assert (floor < poses[:, 2]).all() and (ceiling > poses[:, 2]).all(), "the grid holds every place"
    assert (tmp_path / "whole/samples/step_000004.png").stat().st_size > 1000


def test_latents_without_depth_are_refused(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    base = tmp_path_factory.getbasetemp()
    folder = random_latents(base)
    words = (*words_of(folder, tmp_path / "run", 1), "--frame_stride", 1)
    with pytest.raises(BadInput, match="has no depth.* recorded with --record_depth"):
        call("train_scene_memory.py", *words)
    words = words_of(random_autoencoder(base), tmp_path / "run", 1)
    assert "no latent" in quick_refusal("train_scene_memory.py", *words)


@pytest.mark.skipif(not (SHIPPED / "config.json").exists(), reason="no model ships, and random weights see nothing")
def test_it_learns_heights_colours_and_the_way(
    play: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Of an episode that it sees again under another name: what it has seen it remembers."""
    encoded = ("--dataset_basepath", play, "--save_dir_path", tmp_path / "latents", "--model_folder_or_id", SHIPPED)
    call("encode_images.py", *encoded, "--device", "cpu", "--dataloader_num_workers", 0)
    first, second = find_latents(tmp_path / "latents")
    second.write_bytes(first.read_bytes())
    words = words_of(tmp_path / "latents", tmp_path / "run", 150, batch_size=6, num_validation_windows=48)
    words = changed_words(words, learning_rate=0.004, ema_decay=0.5, lr_scheduler="cosine")
    call("train_scene_memory.py", *words, "--seed", 0)
    last = logged(tmp_path / "run")[-1]
    assert last["view_psnr_db"] > 20 and last["depth_error_share"] < 0.2, last  # 11.6 dB and 10 at first
    assert last["way_units"] < 5 and last["way_degrees"] < 1, last  # 22 and 5
