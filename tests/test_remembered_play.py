"""Promises of a world model with a memory of the map: its games know where they are, wherever they are drawn, saved and
trained; the last frame is moved over what is remembered; and who cannot tell where a game begins is told so."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import call, random_autoencoder, random_latents
from test_beside import Table, companions_of, doom_model, recorded, wish
from test_command_lines import quick_refusal
from test_save_replay import table
from test_scene_memory import pose, room, words_of
from test_scenes import latents, play  # noqa: F401  fixtures
from tiny_models import LEFT, NOOP, RIGHT, tiny_world_model
from torch import Tensor

from backends import CompiledBackend
from command_line import BadInput
from data_loader import WindowDataset
from diffusion import with_own_frames
from engine import GameEngine
from episodes import find_latents
from model import LoadedWorldModel, StartContexts, load_world_model
from model_folders import Geometry
from motion import MotionModel, Mover, composed
from save_replay import replay
from saves import checkpoint_id, unpack
from scene_memory import EYE_UNITS, Ahead, SceneMemory

SHAPE = (4, 8, 10)  # latents of `smoke`, of 64x80 pixels
LENGTH = 4  # the tiny model's context
DRAWN = ("--device", "cpu", "--backend", "torch")
PLAY = (LEFT, RIGHT, RIGHT, NOOP, LEFT, LEFT)


def motion_over_memory(seed: int = 0) -> MotionModel:
    torch.manual_seed(seed)
    made = MotionModel(*SHAPE, num_actions=3, width=8, has_memory=True, pixels_per_cell=8)
    torch.nn.init.normal_(made.conv_out.weight, std=0.3)
    torch.nn.init.normal_(made.conv_std.weight, std=0.5)
    torch.nn.init.normal_(made.conv_drawn.weight, std=0.5)
    return made.requires_grad_(False).eval()


def walking_memory() -> SceneMemory:
    """The room, in which every key moves the camera somewhere."""
    memory = room()
    torch.nn.init.normal_(memory.push[-1].weight, std=0.5)
    return memory


def remembering() -> LoadedWorldModel:
    """`smoke`, over a memory of a room, with two starts in it."""
    loaded = tiny_world_model(has_motion=True, predicts_change=True)
    loaded.world_model.predicts_change = True
    loaded.world_model.move_with(motion_over_memory(), loaded.autoencoder, walking_memory())
    loaded.start_contexts = StartContexts(*beginning(2))
    return loaded


def beginning(games: int = 1, seen: int = LENGTH) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (B, k, C, h, w), the actions between them, and poses (B, k, 4): each game another."""
    generator = torch.Generator().manual_seed(5)
    frames = torch.randn(games, seen, *SHAPE, generator=generator)
    actions = torch.randint(0, 3, (games, seen - 1), generator=generator)
    where = torch.stack([torch.cat([pose(3 * i + 20 * game, -9 * game, 30 * game + i) for i in range(seen)])
                         for game in range(games)])  # fmt: skip
    return frames, actions, where


def begun(engine: GameEngine, games: int = 1) -> GameEngine:
    frames, actions, where = beginning(games)
    engine.reset(frames, actions, list(range(games)), where)
    return engine


# ------------------------------------------------------------------------------------------------ one frame


def ahead(pixels: Tensor) -> Ahead:
    """A step that turns the world by 8 of 80 pixels: what comes into view was not seen."""
    flow = torch.zeros(len(pixels), 2, 64, 80)
    flow[:, 0] = 2 * 8 / 80
    is_seen = torch.ones(len(pixels), 1, 64, 80)
    is_seen[..., -8:] = 0
    return Ahead(flow, is_seen, torch.rand_like(pixels) - 0.5, torch.rand_like(pixels) - 0.5)


def maps(share: float, stays: float) -> tuple[Tensor, Tensor, Tensor]:
    like = torch.ones(1, 1, 16, 20)
    return share * like, stays * like, torch.zeros(1, 2, 16, 20)


def test_the_last_picture_moves_over_what_is_remembered() -> None:
    pixels = torch.rand(1, 3, 64, 80) - 0.5
    step = ahead(pixels)
    shown, flow = composed(pixels, *step, *maps(1, 0))
    assert shown.equal(step.following), "nothing of the picture stays: the memory alone"
    still, _ = composed(pixels, *step, *maps(0, 1))
    assert torch.allclose(still, pixels, atol=1e-4), "nothing is of the world: the picture as it was"
    moved, flow = composed(pixels, *step, *maps(1, 1))
    expected = step.following[..., :-8] + (pixels - step.last)[..., 8:]
    assert torch.allclose(moved[..., :-8], expected.clamp(-1, 1), atol=1e-3), "what differs moves along"
    assert torch.allclose(moved[..., -8:], step.following[..., -8:], atol=1e-6), "what comes into view is remembered"
    assert torch.allclose(flow, step.flow)


def test_what_is_on_the_screen_stands_and_can_still_be_learned() -> None:
    pixels = torch.rand(1, 3, 64, 80) - 0.5
    share, stays, extra = (each.requires_grad_() for each in maps(0.05, 0.9))
    shown, flow = composed(pixels, *ahead(pixels), share, stays, extra + 0.3 * 2 / 80)
    assert torch.allclose(shown, pixels, atol=1e-5) and not flow.any()
    (shown - 1).square().sum().backward()
    assert share.grad.abs().sum() > 0 and extra.grad.abs().sum() > 0
    share, stays, bobs = maps(0, 1)
    bobs[:, 0] = 2 / 80
    moved, _ = composed(pixels, *ahead(pixels), share, stays, bobs)
    assert torch.allclose(moved[..., :-1], pixels[..., 1:], atol=1e-3), "a weapon that bobs by a pixel"


def test_a_dream_that_went_wrong_comes_back_to_the_map() -> None:
    """Standing, what differs from the memory fades by what does not stay."""
    pixels, remembered = torch.full((1, 3, 64, 80), 0.8), torch.zeros(1, 3, 64, 80)
    stands = Ahead(torch.zeros(1, 2, 64, 80), torch.ones(1, 1, 64, 80), remembered, remembered)
    for _ in range(20):
        pixels, _ = composed(pixels, *stands, *maps(1, 0.9))
    assert torch.allclose(pixels, torch.tensor(0.8 * 0.9**20), atol=1e-3)


def test_cells_that_look_as_before_keep_their_codes() -> None:
    loaded = remembering()
    mover: Mover = loaded.world_model.mover
    last, pixels = torch.randn(1, *SHAPE), torch.rand(1, 3, 64, 80) - 0.5
    changed = pixels.clone()
    changed[:, :, :8, :16] += 0.1  # two cells
    changed[:, :, 32:] += 0.001
    kept = mover.moved_over(last, pixels, changed) == last
    assert not kept[:, :, 0, :2].any() and int(kept.all(dim=1).sum()) == 8 * 10 - 2


def test_a_camera_that_hardly_moves_stands() -> None:
    memory = room()
    memory.drift.weight.data.zero_()
    memory.drift.bias.data.fill_(0.019)
    where, actions = pose(12, 34, 56).expand(1, 5, 4), torch.zeros(1, 5, dtype=torch.int64)
    assert memory.next_pose(where, actions).equal(where[:, -1])
    memory.drift.bias.data[3] = 0.5  # four degrees
    assert float(memory.next_pose(where, actions)[0, 3]) == pytest.approx(60, abs=0.01)
    assert memory.next_pose(where[:, -2:], actions[:, -2:]).equal(memory.next_pose(where, actions))


def test_nobody_walks_into_a_wall_or_off_the_ground() -> None:
    """The room's walls are at x = 160 and y = 120, map units."""
    memory = room()

    def let(last: Tensor, following: Tensor) -> list[float]:
        return memory._let(last, following)[0].tolist()

    assert let(pose(0, 0), pose(9, 5, 20)) == pose(9, 5, 20)[0].tolist()
    assert let(pose(150, 0), pose(175, 12, 5)) == pytest.approx([150, 12, EYE_UNITS, 5]), "it slides along a wall"
    assert let(pose(150, 110), pose(175, 140, 5)) == pytest.approx([150, 110, EYE_UNITS, 5])
    assert let(pose(), pose(z=90))[2] == EYE_UNITS + 8, "nobody flies"
    assert let(pose(z=90), pose(z=91))[2] == 89 and let(pose(z=90), pose(z=80))[2] == 80, "who is in the air falls"
    assert let(pose(z=20), pose(z=-60))[2] == 8


def test_what_is_remembered_ahead_is_the_two_views_and_the_way_between_them() -> None:
    memory, last, following = room(), pose(0, 0, 0), pose(10, 0, 5)
    step = memory.look_ahead(last, following)
    assert step.last.equal(memory.look(last).pixels) and step.following.equal(memory.look(following).pixels)
    again = memory.look_ahead(following, pose(20, 0, 9), step.following)
    assert again.last is step.following
    assert 0.5 < float(step.is_seen[:, :, :52].mean()) < 1 and step.is_seen[:, :, 52:].all()
    assert not step.flow[:, :, 52:].any() and step.flow[:, :, :52].abs().mean() > 0.01
    stands = memory.look_ahead(last, last)
    assert stands.flow.abs().max() < 1e-5 and stands.is_seen.all()


def test_who_has_risen_elsewhere_has_seen_nothing_of_it() -> None:
    step = room().look_ahead(pose(-100, 0), pose(100, 0))
    assert not step.flow.any() and not step.is_seen[:, :, :52].any() and step.is_seen[:, :, 52:].all()


# ------------------------------------------------------------------------------------------------ games


def test_a_game_knows_where_it_is_and_a_state_replays_it_exactly() -> None:
    engine = begun(GameEngine(remembering()))
    for action in PLAY[:3]:
        engine.step(action)
    state, where = engine.state(), engine.poses.clone()
    assert tuple(where.shape) == (1, LENGTH, 4) and (where[0, 1:] != where[0, :-1]).any(dim=1).all()
    first = [engine.step(action) for action in PLAY]
    begun(engine)  # another moment in between: nothing at hand may be taken for its own
    engine.step(NOOP)
    engine.restore(state)
    assert engine.poses.equal(where)
    assert all(np.array_equal(engine.step(action), frame) for action, frame in zip(PLAY, first, strict=True))


def test_where_a_game_stands_decides_what_it_shows() -> None:
    frames = []
    for angle in (0, 90):
        engine = GameEngine(remembering())
        context, actions, where = beginning()
        where[..., 3] += angle
        engine.reset(context, actions, [0], where)
        frames.append(engine.step(LEFT))
    assert np.abs(frames[0].astype(float) - frames[1]).mean() > 0.2


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_games_side_by_side_are_those_alone(backend: str) -> None:
    engine = begun(GameEngine(remembering(), backend=backend), games=2)
    both = [engine.step([action, RIGHT]) for action in PLAY]
    where = engine.poses
    for game in range(2):
        alone = GameEngine(remembering(), backend=backend)
        context, actions, poses = (each[game : game + 1] for each in beginning(2))
        alone.reset(context, actions, [game], poses)
        frames = [alone.step((action, RIGHT)[game]) for action in PLAY]
        assert torch.allclose(alone.poses[0], where[game], atol=1e-3)
        apart = [np.abs(one.astype(float) - two[game]).mean() for one, two in zip(frames, both, strict=True)]
        assert max(apart) < 0.5


def test_every_back_end_draws_them_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, onnx, compiled = (begun(GameEngine(remembering(), backend=name)) for name in ("torch", "onnx", "torch"))
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: real(function, backend="eager"))
    compiled.backend = CompiledBackend(remembering())
    frames = [np.stack([engine.step(action) for action in PLAY]).astype(float) for engine in (plain, onnx, compiled)]
    assert np.abs(frames[0] - frames[1]).mean() < 1 and np.abs(frames[0] - frames[2]).mean() < 6
    assert torch.allclose(plain.poses, onnx.poses, atol=1e-3) and torch.allclose(plain.poses, compiled.poses, atol=1e-3)


def test_own_frames_are_moved_as_the_engine_moves_them() -> None:
    loaded = remembering()
    engine = begun(GameEngine(loaded))
    window, actions, _ = beginning(seen=LENGTH + 2)
    window[:, :LENGTH], actions[:, : LENGTH - 1] = engine.latents, engine.actions
    where = torch.cat([engine.poses, engine.poses[:, -2:]], dim=1)
    noise = engine._noise(0, torch.Size(SHAPE))
    drawn = engine.step_latents(actions[:, LENGTH - 1])
    where[:, LENGTH] = engine.poses[:, -1]
    settings = {"num_inference_steps": engine.num_inference_steps, "poses": where}
    window, _ = with_own_frames(loaded.world_model, loaded.scheduler, window, actions, noise[:, None], **settings)
    assert torch.allclose(window[:, -2], drawn, atol=1e-4)


def test_the_folder_holds_the_memory_and_the_starts_know_where_they_are(tmp_path: Path) -> None:
    loaded = remembering()
    loaded.save(tmp_path / "world_model")
    inner = tmp_path / "world_model/motion/scene_memory"
    assert json.loads((inner / "config.json").read_text())["_class_name"] == "SceneMemory"
    again = load_world_model(tmp_path / "world_model")
    engines = [GameEngine(each) for each in (loaded, again)]
    for engine in engines:
        engine.reset_to_start(1, seed=3)
    assert engines[0].poses.equal(engines[1].poses) and engines[0].poses.equal(beginning(2)[2][1:])
    (inner / "config.json").write_text((inner / "config.json").read_text().replace('"version": 1', '"version": 9'))
    with pytest.raises(BadInput, match="a memory of version 9, this program reads 1"):
        load_world_model(tmp_path / "world_model")


def test_a_game_that_is_nowhere_is_refused() -> None:
    engine = GameEngine(remembering())
    with pytest.raises(BadInput, match="nothing tells where in it this game begins"):
        engine.reset(*beginning()[:2])
    engine.start_contexts = None
    with pytest.raises(BadInput, match="nothing tells"):
        engine.begin([0], [0])
    context, actions, where = beginning()
    with pytest.raises(ValueError, match="poses"):
        engine.reset(context, actions, [0], where[:, 1:])


def test_play_that_cannot_begin_is_one_line(tmp_path: Path) -> None:
    remembering().save(tmp_path / "world_model")
    (tmp_path / "world_model/start_contexts.safetensors").unlink()
    with pytest.raises(BadInput, match="no start context tells where in it to begin; copy it whole"):
        call(
            "play.py", "--model_folder", tmp_path / "world_model", "--port", 0, "--device", "cpu", "--backend", "torch"
        )


def test_an_episode_that_does_not_tell_where_it_was_does_not_end_what_stands_beside(tmp_path: Path) -> None:
    path = recorded(tmp_path / "play", "episode_0.parquet", [0] * 60)
    model = doom_model()
    board = Table(tmp_path, companions_of(model, episodes=[path]), model)
    player = board.player()
    model.world_model.mover = remembering().world_model.mover  # as if it remembered a map
    with pytest.raises(BadInput, match="does not tell where it was seen from"):
        board.loop.besides._open_episode(player, board.loop.besides.companions.replays[0])


def test_a_save_of_play_with_a_rewind_replays_to_the_identical_frames(tmp_path: Path) -> None:
    remembering().save(tmp_path / "world_model")
    loop, player = table(tmp_path / "world_model", tmp_path)
    for number in range(6):
        player.press(number + 1, ("d",) if number >= 3 else ())
        loop.serve(player)
    wish(player, "rewind", timeline=player.timeline, frame=player.history[-3].frame)
    for number in range(6, 9):
        player.press(number + 1, ("a",))
        loop.serve(player)
    contents = loop.saved(player, "here")()
    engine = GameEngine.from_pretrained(tmp_path / "world_model")
    save = unpack(contents, engine, checkpoint_id(engine))
    assert save.state["poses"].equal(player.state["poses"]) and not save.first_poses.equal(save.state["poses"])
    verdict, _ = replay(engine, save, tmp_path / "recordings")
    assert verdict.is_identical and engine.poses.equal(player.state["poses"])
    forgetful = GameEngine(tiny_world_model())
    with pytest.raises(BadInput, match="no save of a game"):
        unpack(contents, forgetful, checkpoint_id(engine))


# ------------------------------------------------------------------------------------------------ the trainers


def flags() -> tuple[object, ...]:
    values = {"lr_warmup_steps": 0, "dataloader_num_workers": 0, "device": "cpu", "report_to": "none"}
    return tuple(word for name, value in values.items() for word in (f"--{name}", value))


@pytest.fixture(scope="module")
def memory_folder(latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("memory") / "run"
    call("train_scene_memory.py", *words_of(latents, folder, 2))
    return folder


def test_motion_and_world_model_learn_over_a_memory_and_resume_exactly(
    latents: Path,  # noqa: F811
    memory_folder: Path,
    tmp_path: Path,
) -> None:
    ends = {}
    for name, stops in (("whole", [4]), ("resumed", [2, 4])):
        for stop in stops:
            own = ("--dataset_basepath", latents, "--output_dir", tmp_path / name, "--max_train_steps", stop)
            own += ("--scene_memory_folder", memory_folder, "--batch_size", 2, "--num_validation_windows", 4)
            own += ("--own_frames", 3, "--own_frames_share", 0.7)
            call("train_motion.py", *own, *flags(), "--checkpointing_steps", 2)
        ends[name] = (tmp_path / name / "checkpoint-4/model.safetensors").read_bytes()
    assert ends["whole"] == ends["resumed"]
    remembered = load_file(memory_folder / "scene_memory/diffusion_pytorch_model.safetensors")
    kept = load_file(tmp_path / "whole/motion/scene_memory/diffusion_pytorch_model.safetensors")
    assert all(kept[name].equal(tensor) for name, tensor in remembered.items()), "motion changes nothing of the memory"

    for name, stops in (("dream", [4]), ("resumed_dream", [2, 4])):
        for stop in stops:
            own = ("--dataset_basepath", latents, "--output_dir", tmp_path / name, "--max_train_steps", stop)
            own += ("--motion_folder", tmp_path / "whole", "--preset", "smoke", "--train_batch_size", 2)
            own += ("--num_validation_windows", 4, "--own_frames", 2, "--own_frames_share", 0.5)
            call("train_text_to_image.py", *own, *flags(), "--checkpointing_steps", 2)
        ends[name] = (tmp_path / name / "checkpoint-4/model.safetensors").read_bytes()
    assert ends["dream"] == ends["resumed_dream"]
    loaded = load_world_model(tmp_path / "dream")
    count, length = loaded.start_contexts.latents.shape[:2]
    assert tuple(loaded.start_contexts.poses.shape) == (count, length, 4)
    engine = GameEngine(loaded)
    engine.reset_to_start(0)
    assert engine.step(0).std() > 0
    further = ("--dataset_basepath", latents, "--output_dir", tmp_path / "further", "--max_train_steps", 1)
    further += ("--pretrained_model_name_or_path", tmp_path / "dream", "--num_validation_windows", 2)
    call("train_text_to_image.py", *further, *flags())
    again = load_world_model(tmp_path / "further").world_model.memory.state_dict()
    assert all(again[name].equal(tensor.float()) for name, tensor in remembered.items())


def test_play_that_does_not_tell_where_it_was_is_refused_by_all_who_need_it(
    latents: Path,  # noqa: F811
    memory_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
) -> None:
    base = tmp_path_factory.getbasetemp()
    own = ("--dataset_basepath", random_latents(base), "--output_dir", tmp_path / "run", *flags())
    SceneMemory.from_pretrained(memory_folder / "scene_memory").save_pretrained(tmp_path / "memory")
    facts = json.loads((tmp_path / "memory/config.json").read_text())
    (tmp_path / "memory/config.json").write_text(json.dumps({**facts, "frame_stride": 1}))
    words = (*own, "--frame_stride", 1, "--max_train_steps", 1)
    with pytest.raises(BadInput, match="has no depth.*record"):
        call("train_motion.py", *words, "--scene_memory_folder", tmp_path / "memory")
    line = quick_refusal("train_motion.py", *words, "--scene_memory_folder", random_autoencoder(base))
    assert "not a memory's folder" in line
    line = quick_refusal("train_motion.py", *words, "--scene_memory_folder", memory_folder)
    assert "of frames 4 tics apart, not 1" in line
    seen_by_another = WindowDataset(find_latents(latents), context_length=4, frame_stride=4, with_scene=True)
    with pytest.raises(BadInput, match="seen by another camera"):
        room().check(seen_by_another, Geometry("smoke", 80, 60, 80, 64))
    remembering().save(tmp_path / "world_model")
    told = ("--unet_model_folder", tmp_path / "world_model", "--dataset_basepath", random_latents(base))
    with pytest.raises(BadInput, match="has no depth"):
        call("run_autoregressive.py", *told, *DRAWN, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
