"""Promises of the motion model: the keys move the last frame, a world model sees it moved wherever it draws, and what
holds still keeps its codes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import call, changed_words, logged, random_autoencoder, random_latents, world_model_words, write_play
from test_backends import played
from test_command_lines import quick_refusal
from tiny_models import LEFT, NOOP, RIGHT, saved, tiny_autoencoder, tiny_world_model
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from backends import CompiledBackend
from command_line import BadInput
from diffusion import with_own_frames
from engine import GameEngine
from model import LoadedWorldModel, load_world_model
from motion import (
    LEAST_STD,
    MOST_STD,
    NEWS,
    SEEN_FRAMES,
    MotionModel,
    Moved,
    Mover,
    places,
    warp,
)
from motion_loss import likelihood_loss, photometric_loss
from saves import checkpoint_id

SHAPE = (4, 8, 10)  # latents of `smoke`, of 64x80 pixels


def motion(seed: int = 0) -> MotionModel:
    """A motion model for `smoke` by which everything moves somewhere."""
    torch.manual_seed(seed)
    made = MotionModel(*SHAPE, num_actions=3, width=8)
    torch.nn.init.normal_(made.flow_of_keys.weight)
    torch.nn.init.normal_(made.conv_std.weight, std=0.5)
    return made.requires_grad_(False).eval()


def moving_world_model() -> LoadedWorldModel:
    """`smoke`, about the prior that the motion model tells."""
    loaded = tiny_world_model(has_motion=True, predicts_change=True)
    loaded.world_model.predicts_change = True
    loaded.world_model.move_with(motion(), loaded.autoencoder)
    return loaded


def stripes(generator: torch.Generator, number: int) -> Tensor:
    """Pictures (number, 3, 64, 160) of upright stripes of random grey, blurred as a screen's are."""
    columns = torch.rand(number, 1, 1, 40, generator=generator) * 2 - 1
    wide = torch.nn.functional.interpolate(columns, (1, 160), mode="bilinear")
    return wide.expand(-1, 3, 64, -1)


def test_a_flow_says_where_each_place_was_before() -> None:
    picture = torch.rand(1, 3, 64, 80)
    flow = torch.zeros(1, 2, 16, 20)
    assert torch.allclose(warp(picture, flow), picture, atol=1e-4)
    flow[:, 0] = 8 / 40  # 8 pixels to the right of here, in halves of the width
    assert torch.allclose(warp(picture, flow)[..., :-8], picture[..., 8:], atol=1e-4)
    assert torch.allclose(warp(picture, flow)[..., -8:], picture[..., -8:].flip(-1), atol=1e-4), "mirrored"
    flow = torch.zeros(1, 2, 16, 20)
    flow[:, 1] = 4 / 32
    assert torch.allclose(warp(picture, flow)[:, :, :-4], picture[:, :, 4:], atol=1e-4)


@pytest.mark.parametrize("moved_by", [(0.5, 0), (0, -0.5), (3.3, 1.7), (-90.2, 70.6)], ids=str)
def test_a_mirrored_picture_moved_the_other_way_is_the_moved_picture_mirrored(moved_by: tuple[float, float]) -> None:
    picture = 1.6 * torch.rand(1, 3, 64, 80) - 0.8
    flow = torch.tensor([moved_by[0] / 40, moved_by[1] / 32])[None, :, None, None].expand(1, 2, 16, 20)
    mirrored = warp(picture.flip(2, 3), -flow).flip(2, 3)
    assert torch.allclose(warp(picture, flow), mirrored, atol=1e-4)


def test_a_picture_that_is_moved_again_and_again_keeps_its_contrast() -> None:
    stripes_px = 3
    picture = torch.sin(torch.arange(160) * 2 * torch.pi / stripes_px).expand(1, 3, 128, -1).clone()
    flow = torch.zeros(1, 2, 32, 40)
    flow[:, 0] = 2 * 2.5 / 160  # two and a half pixels
    moved, linear, cubic = picture, picture, picture
    grid = (places(128, 160, flow) + at_picture_size(flow)).permute(0, 2, 3, 1)
    for _ in range(8):
        moved = warp(moved, flow)
        linear = grid_sample(linear, grid, mode="bilinear", padding_mode="border", align_corners=False)
        cubic = grid_sample(cubic, grid, mode="bicubic", padding_mode="border", align_corners=False)
    middle = (..., slice(20, 110), slice(20, 120))
    contrasts = [float(each[middle].std() / picture[middle].std()) for each in (moved, linear, cubic)]
    assert contrasts[0] > 0.8 and max(contrasts[1:]) < 0.4, contrasts
    assert moved.abs().max() <= 1


def at_picture_size(flow: Tensor) -> Tensor:
    return interpolate(flow, (128, 160), mode="bilinear")


def test_it_learns_from_pictures_alone_that_a_key_turns_the_view_by_many_pixels() -> None:
    """Left and right by 10 pixels, more than a cell and than half a stripe; no-op not at all."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    made = MotionModel(*SHAPE, num_actions=3, width=16)
    optimizer = torch.optim.AdamW(made.parameters(), 3e-3)
    shift = torch.tensor([0, -10, 10])
    for _ in range(400):
        actions = torch.randint(0, 3, (8, SEEN_FRAMES), generator=generator)
        wide = stripes(generator, 8)
        last = wide[..., 40:120]
        target = torch.stack([w[..., 40 + s : 120 + s] for w, s in zip(wide, shift[actions[:, -1]], strict=True)])
        flow, _ = made(torch.zeros(8, SEEN_FRAMES, *SHAPE), actions)
        loss = photometric_loss(warp(last, flow), target, flow)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)  # as the trainer does
        optimizer.step()
        optimizer.zero_grad()
    for action, pixels in ((NOOP, 0), (LEFT, -10), (RIGHT, 10)):
        actions = torch.full((1, SEEN_FRAMES), action)
        flow = made(torch.zeros(1, SEEN_FRAMES, *SHAPE), actions)[0][:, :, 4:-4, 5:-5]
        assert abs(float(flow[:, 0].mean()) * 40 - pixels) < 2 and float(flow[:, 1].abs().mean()) * 32 < 2


def test_it_learns_where_the_moved_frame_is_not_to_be_trusted() -> None:
    """The next latents are the last ones, but for the left half, which is anew each time."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    made = MotionModel(*SHAPE, num_actions=3, width=16)
    optimizer = torch.optim.AdamW(made.parameters(), 5e-3)
    actions = torch.zeros(8, SEEN_FRAMES, dtype=torch.int64)
    for _ in range(150):
        latents = torch.randn(8, SEEN_FRAMES, *SHAPE, generator=generator)
        target = latents[:, -1] + 0.1 * torch.randn(8, *SHAPE, generator=generator)
        target[..., :5] = torch.randn(8, 4, 8, 5, generator=generator)
        likelihood_loss(latents[:, -1], target, made(latents, actions)[1]).backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)  # as the trainer does
        optimizer.step()
        optimizer.zero_grad()
    _, std = made(latents, actions)
    assert float(std[..., :4].mean()) == pytest.approx(2**0.5, rel=0.15)  # of the difference of two unit Gaussians
    assert float(std[..., 6:].mean()) == pytest.approx(0.1, rel=0.3)


def test_only_what_moves_is_drawn_anew() -> None:
    context, actions = torch.randn(2, 4, *SHAPE), torch.randint(0, 3, (2, 4))
    still = MotionModel(*SHAPE, num_actions=3, width=8)  # nothing moves before it has learnt anything
    pixels = tiny_autoencoder().decode_latents(context[:, -1])
    assert Mover(still, tiny_autoencoder())(context, actions, pixels)[0].equal(context)
    half = motion()
    half.flow_of_keys.weight.zero_()
    half.flow_of_keys.bias.copy_(torch.tensor([1.0, 0.0])[:, None, None].expand(2, 8, 10).flatten())
    half.flow_of_keys.bias.view(2, 8, 10)[:, 4:] = 0  # the lower half stands still
    half.conv_std.weight.zero_()
    for expected, kept in ((0.4, NEWS), (1.2, 0)):
        between = torch.tensor(np.log(expected / LEAST_STD) / np.log(MOST_STD / LEAST_STD))
        half.conv_std.bias.fill_(float(torch.logit(between)))
        _, std, tolerance = Mover(half, tiny_autoencoder())(context, actions, pixels)
        assert torch.allclose(std, torch.tensor(expected)) and (tolerance == kept).all()
    moved = Mover(half, tiny_autoencoder())(context, actions, pixels).context
    assert moved[:, :-1].equal(context[:, :-1]) and moved[:, -1, :, 5:].equal(context[:, -1, :, 5:])
    assert not torch.isclose(moved[:, -1, :, :3], context[:, -1, :, :3]).any()


def test_a_kept_cell_gives_way_to_what_differs_from_it_by_more_than_was_to_be_expected() -> None:
    """As a muzzle flash does, of which a motion model knows nothing."""
    context = torch.randn(1, 4, *SHAPE)
    tolerance = torch.full((1, 1, 8, 10), 0.5)
    tolerance[..., 5:] = 0  # cells that nobody keeps
    drawn = context[:, -1] + 0.2
    drawn[:, :, 2, 3] += 1  # the flash
    settled = Moved(context, tolerance, tolerance).settle(drawn)
    is_kept = (settled == context[:, -1]).all(dim=1)[0]
    assert not is_kept[:, 5:].any() and not is_kept[2, 3] and int(is_kept.sum()) == 39
    assert settled[:, :, 2, 3].equal(drawn[:, :, 2, 3]) and settled[..., 5:].equal(drawn[..., 5:])
    assert Moved(context, None, None).settle(drawn) is drawn


def test_the_newest_actions_decide_and_older_ones_than_it_sees_do_not() -> None:
    made, context = motion(), torch.randn(1, 7, *SHAPE)
    actions = torch.tensor([[LEFT, LEFT, LEFT, NOOP, NOOP, NOOP, RIGHT]])
    before, std = made(context, actions)
    older, newest = actions.clone(), actions.clone()
    older[0, 2], newest[0, -1] = RIGHT, LEFT
    assert made(context, older)[0].equal(before) and not torch.allclose(made(context, newest)[0], before)
    assert tuple(before.shape) == (1, 2, 16, 20) and tuple(std.shape) == (1, 1, 8, 10)
    assert before.dtype == std.dtype == torch.float32


def test_the_world_model_comes_back_with_its_motion_and_draws_the_same(tmp_path: Path) -> None:
    loaded = moving_world_model()
    loaded.save(tmp_path / "world_model")
    assert json.loads((tmp_path / "world_model/motion/config.json").read_text())["_class_name"] == "MotionModel"
    again = load_world_model(tmp_path / "world_model")
    frames = [played(GameEngine(each)) for each in (loaded, again, tiny_world_model())]
    assert np.array_equal(frames[0], frames[1]) and not np.array_equal(frames[0], frames[2])
    (tmp_path / "world_model/motion/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(BadInput, match="weights do not load"):
        load_world_model(tmp_path / "world_model")


def test_every_back_end_moves_the_frame_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, onnx = (GameEngine(moving_world_model(), backend=name) for name in ("torch", "onnx"))
    compiled = GameEngine(moving_world_model())
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: real(function, backend="eager"))
    compiled.backend = CompiledBackend(moving_world_model())
    context, actions = torch.randn(2, 4, *SHAPE), torch.tensor([[LEFT] * 4, [RIGHT] * 4])
    expected = plain.backend.moved(context, actions)
    assert not torch.isclose(expected.context[:, -1], context[:, -1]).all() and float(expected.std.std()) > 0.01
    for other, share in ((onnx, 1e-3), (compiled, 0.02)):
        for given, wanted in zip(other.backend.moved(context, actions), expected, strict=True):
            assert float((given - wanted).abs().mean()) < share * float(wanted.abs().mean())
    for engine in (plain, onnx, compiled):
        engine.use(2, 1.5, 0)
    frames = [played(engine).astype(np.float64) / 255 for engine in (plain, onnx, compiled)]
    assert np.abs(frames[0] - frames[1]).mean() < 1 / 255 and np.abs(frames[0] - frames[2]).mean() < 4 / 255
    plain.backend.moved = lambda *seen: plain.world_model.moved(*seen[:2])._replace(std=None, tolerance=None)
    assert np.abs(frames[0] - played(plain) / 255).mean() > 4 / 255  # the prior does count


def test_a_tuned_decoder_leaves_a_game_the_same_checkpoints() -> None:
    loaded, other = moving_world_model(), moving_world_model()
    before = checkpoint_id(GameEngine(loaded))
    next(other.autoencoder.vae.decoder.parameters()).add_(1)
    assert checkpoint_id(GameEngine(other)) == before
    next(other.world_model.mover.motion.parameters()).add_(1)
    assert checkpoint_id(GameEngine(other)) != before


def test_own_frames_are_moved_as_the_engine_moves_them() -> None:
    loaded = moving_world_model()
    engine = GameEngine(loaded)
    latents, actions = torch.randn(1, 6, *SHAPE), torch.tensor([[LEFT, RIGHT, LEFT, LEFT, RIGHT]])
    engine.reset(latents[:, :4], actions[:, :3], [5])
    noise = engine._noise(0, torch.Size(SHAPE))
    drawn = engine.step_latents(actions[:, 3])
    window, _ = with_own_frames(
        loaded.world_model,
        loaded.scheduler,
        latents,
        actions,
        noise[:, None],
        num_inference_steps=engine.num_inference_steps,
    )
    assert torch.allclose(window[:, -2], drawn, atol=1e-5)


def test_both_who_draw_keep_the_moved_frame_within_its_tolerance() -> None:
    loaded = moving_world_model()
    latents, actions = torch.randn(1, 6, *SHAPE), torch.tensor([[LEFT, RIGHT, LEFT, LEFT, RIGHT]])
    moved = loaded.world_model.moved(latents[:, :4], actions[:, :4])
    last = moved.context[:, -1]
    for tolerance, is_kept in ((1e9, True), (0.0, False)):
        held = moved._replace(tolerance=torch.full_like(moved.std, tolerance))
        loaded.world_model.moved = lambda *seen, held=held, **at_hand: held
        engine = GameEngine(loaded)
        engine.reset(latents[:, :4], actions[:, :3], [5])
        noise = engine._noise(0, torch.Size(SHAPE))[:, None]
        settings = {"num_inference_steps": engine.num_inference_steps}
        window, _ = with_own_frames(loaded.world_model, loaded.scheduler, latents, actions, noise, **settings)
        for drawn in (engine.step_latents(actions[:, 3]), window[:, -2]):
            assert torch.allclose(drawn, last, atol=1e-5) is is_kept


# ------------------------------------------------------------------------------------------------ the two trainers


def motion_words(base: Path, output_dir: Path) -> tuple[object, ...]:
    own = ("--dataset_basepath", random_latents(base), "--output_dir", output_dir, "--frame_stride", 1)
    own += ("--batch_size", 4, "--num_validation_windows", 8, "--learning_rate", 0.003, "--report_to", "none")
    return (*own, "--lr_warmup_steps", 0, "--dataloader_num_workers", 0, "--device", "cpu", "--checkpointing_steps", 4)


def test_a_motion_run_resumes_exactly_and_a_world_model_learns_on_it_and_goes_on_with_it(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path_factory.getbasetemp()
    for name, ends in (("whole", [8]), ("resumed", [4, 8])):
        for end in ends:
            words = (*motion_words(base, tmp_path / name), "--event_share", 0.5, "--own_frames", 2)
            call("train_motion.py", *words, "--max_train_steps", end)
    ends = [tmp_path / name / "checkpoint-8/model.safetensors" for name in ("whole", "resumed")]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    said = capsys.readouterr().out
    assert "after 8 steps, " in said and " of 8 held-out frames change" in said and "resumed from" in said
    assert [row["step"] for row in logged(tmp_path / "whole") if "loss" in row] == [4, 8]

    words = changed_words(world_model_words(base, tmp_path / "run"), max_train_steps=2)
    call("train_text_to_image.py", *words, "--motion_folder", tmp_path / "whole", "--event_share", 0.5)
    assert re.search(r"[3-6]\d of 69 windows show an event: 50% of what is drawn", capsys.readouterr().out)
    first = load_world_model(tmp_path / "run")
    assert first.config.has_motion and first.world_model.mover.motion.config.latent_width == SHAPE[2]
    further = changed_words(words, output_dir=tmp_path / "further", preset=None, frame_stride=None)
    call("train_text_to_image.py", *further, "--pretrained_model_name_or_path", tmp_path / "run")
    second = load_world_model(tmp_path / "further")
    kept = zip(*(each.world_model.mover.motion.parameters() for each in (first, second)), strict=True)
    assert second.config.has_motion and all(before.equal(after) for before, after in kept)


def test_a_motion_run_starts_from_a_finished_one_and_measures_it_first(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path_factory.getbasetemp()
    call("train_motion.py", *motion_words(base, tmp_path / "first"), "--max_train_steps", 4)
    start = load_file(tmp_path / "first/motion/diffusion_pytorch_model.safetensors")
    loaded = moving_world_model()
    loaded.world_model.move_with(MotionModel.from_pretrained(tmp_path / "first/motion"), loaded.autoencoder)
    loaded.save(tmp_path / "world_model")
    for number, source in enumerate((tmp_path / "first", tmp_path / "world_model")):
        capsys.readouterr()
        words = (*motion_words(base, tmp_path / f"further_{number}"), "--max_train_steps", 1, "--lr_warmup_steps", 9)
        call("train_motion.py", *words, "--pretrained_model_name_or_path", source, "--event_share", 0.3)
        said = capsys.readouterr().out
        assert "after 0 steps" in said and "windows show an event: 30% of what is drawn" in said
        end = load_file(tmp_path / f"further_{number}/checkpoint-1/model.safetensors")
        assert all(end[name].equal(start[name]) for name in start), "the first step of a warm-up has a rate of zero"
        names = ("first", f"further_{number}")
        configs = [MotionModel.from_pretrained(tmp_path / run / "motion").config for run in names]
        assert configs[0].encoder_sha256 == configs[1].encoder_sha256 is not None
    capsys.readouterr()
    words = (*motion_words(base, tmp_path / "x"), "--pretrained_model_name_or_path")
    assert "not a motion model's folder" in quick_refusal("train_motion.py", *words, random_autoencoder(base))
    MotionModel(*SHAPE, num_actions=3, frame_stride=4).save_pretrained(tmp_path / "slow")
    assert "moves frames by 4 tics" in quick_refusal("train_motion.py", *words, tmp_path / "slow")
    MotionModel(*SHAPE, num_actions=9).save_pretrained(tmp_path / "other")
    with pytest.raises(BadInput, match="knows 9 actions, the data 3"):
        call("train_motion.py", *words, tmp_path / "other")


def test_a_run_sees_its_frames_moved_and_cannot_go_on_without(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    base = tmp_path_factory.getbasetemp()
    motion().save_pretrained(tmp_path / "motion")
    weights = []
    for name, flags in (("moved", ("--motion_folder", tmp_path / "motion")), ("still", ())):
        words = changed_words(world_model_words(base, tmp_path / name), max_train_steps=2, lr_warmup_steps=0)
        call("train_text_to_image.py", *words, *flags)
        weights.append((tmp_path / name / "checkpoint-2/model.safetensors").read_bytes())
    assert weights[0] != weights[1]
    further = changed_words(world_model_words(base, tmp_path / "moved"), max_train_steps=3, lr_warmup_steps=0)
    with pytest.raises(BadInput, match="motion_sha256"):
        call("train_text_to_image.py", *further)


def test_motion_of_another_kind_is_refused(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    base = tmp_path_factory.getbasetemp()
    words = world_model_words(base, tmp_path / "run")
    line = quick_refusal("train_text_to_image.py", *words, "--motion_folder", random_autoencoder(base))
    assert "not a motion model's folder" in line
    MotionModel(4, 8, 8, num_actions=3).save_pretrained(tmp_path / "narrow")
    line = quick_refusal("train_text_to_image.py", *words, "--motion_folder", tmp_path / "narrow")
    assert "(4, 8, 8)" in line and "(4, 8, 10)" in line
    MotionModel(*SHAPE, num_actions=9).save_pretrained(tmp_path / "other")
    with pytest.raises(BadInput, match="knows 9 actions, the data 3"):
        call("train_text_to_image.py", *words, "--motion_folder", tmp_path / "other")
    MotionModel(*SHAPE, num_actions=3, frame_stride=4).save_pretrained(tmp_path / "slow")
    line = quick_refusal("train_text_to_image.py", *words, "--motion_folder", tmp_path / "slow")
    assert "moves frames by 4 tics, preset smoke by 1" in line
    MotionModel(*SHAPE, num_actions=3, seen_frames=5).save_pretrained(tmp_path / "long")
    line = quick_refusal("train_text_to_image.py", *words, "--motion_folder", tmp_path / "long")
    assert "looks at 5 frames, preset smoke has a context of 4" in line
    MotionModel(*SHAPE, num_actions=3, version=1).save_pretrained(tmp_path / "old")
    with pytest.raises(BadInput, match="a motion model of version 1, this program reads 2; train it again"):
        call("train_text_to_image.py", *words, "--motion_folder", tmp_path / "old")
    MotionModel(*SHAPE, num_actions=3, encoder_sha256="0" * 64).save_pretrained(tmp_path / "foreign")
    with pytest.raises(BadInput, match="made for encoder 000000000000, not "):
        call("train_text_to_image.py", *words, "--motion_folder", tmp_path / "foreign")
    lone = write_play(tmp_path / "lone/episode_000000.parquet", 8, seed=0)
    assert "no latent" in quick_refusal(
        "train_motion.py", *motion_words(base, tmp_path / "x")[2:], "--dataset_basepath", lone.parent
    )
    other = saved(tiny_autoencoder(seed=1), tmp_path / "other_autoencoder")
    with pytest.raises(BadInput, match="another encoder"):
        call("train_motion.py", *motion_words(base, tmp_path / "y"), "--vae_folder_or_id", other)
