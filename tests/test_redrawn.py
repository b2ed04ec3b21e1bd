"""Promises of what is drawn over the moved picture: on or off and never half, learned where moving does not reach, and
what a dream has lost comes back."""

import math
from types import SimpleNamespace

import pytest
import torch
from test_remembered_play import LENGTH, SHAPE, beginning, begun, motion_over_memory, remembering
from tiny_models import NOOP, RIGHT, tiny_autoencoder
from torch import Tensor

import motion
import motion_loss
from engine import GameEngine
from motion import MotionModel, Mover, Redrawn, told_of
from motion_loss import MIXTURE_SCALE, MotionLoss, mixture_loss
from scene_memory import Ahead
from window_loss import number_of_own_frames

PIXELS = (64, 80)


def redrawn(value: float, logit: float) -> Redrawn:
    return Redrawn(torch.full((1, 3, *PIXELS), value), torch.full((1, 1, *PIXELS), logit))


def test_a_pixel_is_the_drawn_one_or_the_moved_one() -> None:
    moved, drawn = torch.zeros(1, 3, *PIXELS), redrawn(1.5, -3.0)
    drawn.logit[..., :10] = 0.1
    shown = drawn.over(moved)
    assert (shown[..., :10] == 1).all() and (shown[..., 10:] == 0).all()


def test_the_loss_is_that_of_two_experts_of_whom_the_nearer_one_learns() -> None:
    target, moved = torch.full((1, 3, *PIXELS), 0.5), torch.zeros(1, 3, *PIXELS, requires_grad=True)
    drawn = redrawn(0.4, math.log(1 / 3))  # taken one time in four
    loss = mixture_loss(moved, drawn, target)
    likelihood = 0.75 * math.exp(-0.5 / MIXTURE_SCALE) + 0.25 * math.exp(-0.1 / MIXTURE_SCALE)
    assert float(loss) == pytest.approx(-math.log(likelihood), rel=1e-4)
    gradients = []
    for value in (0.45, -0.5):  # nearer than what moved, and farther
        drawn = redrawn(value, 0.0)
        drawn.pixels.requires_grad_(), drawn.logit.requires_grad_()
        mixture_loss(moved, drawn, target).backward()
        gradients.append((float(drawn.pixels.grad.abs().sum()), float(drawn.logit.grad.sum())))
    assert gradients[0][0] > 100 * gradients[1][0], "who is far off is let be"
    assert gradients[0][1] < 0 < gradients[1][1], "the logit goes to the nearer one"
    assert moved.grad is None


def nothing_moves(last: Tensor) -> Ahead:
    """Of a memory that knows the picture as it is."""
    count = len(last)
    return Ahead(torch.zeros(count, 2, *PIXELS), torch.ones(count, 1, *PIXELS), last, last)


def test_a_lamp_that_one_key_lights_is_learned_and_is_on_or_off() -> None:
    """The key lights it seven times in ten, the others never; elsewhere a picture that stands."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    made = MotionModel(*SHAPE, num_actions=3, width=16, has_memory=True, pixels_per_cell=8)
    optimizer = torch.optim.AdamW(made.parameters(), 5e-3)
    lamp = (..., slice(24, 40), slice(32, 48))
    for _ in range(150):
        actions = torch.randint(0, 3, (8, LENGTH), generator=generator)
        last = torch.rand(8, 3, *PIXELS, generator=generator) * 0.6 - 0.3
        target = last.clone()
        is_lit = (actions[:, -1] == RIGHT) & (torch.rand(8, generator=generator) < 0.7)
        target[lamp] = torch.where(is_lit[:, None, None, None], 0.9, target[lamp])
        ahead = nothing_moves(last)
        latents = torch.randn(8, LENGTH, *SHAPE, generator=generator)
        *_, drawn = made(latents, actions, remembered=told_of(last, *ahead, cell=8))
        mixture_loss(last, drawn, target).backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)  # as the trainer does
        optimizer.step()
        optimizer.zero_grad()
    last = torch.zeros(1, 3, *PIXELS)
    for key, brightness in ((RIGHT, 0.9), (NOOP, 0.0)):
        actions = torch.full((1, LENGTH), key)
        *_, drawn = made(
            torch.randn(1, LENGTH, *SHAPE), actions, remembered=told_of(last, *nothing_moves(last), cell=8)
        )
        shown = drawn.over(last)
        assert abs(float(shown[lamp].mean()) - brightness) < 0.1, key
        shown[lamp] = 0
        assert float((shown != 0).float().mean()) < 0.02, "nowhere else"


def test_without_a_drawn_pixel_a_frame_is_that_of_a_model_that_only_moves() -> None:
    torch.manual_seed(3)
    draws = motion_over_memory()
    moves = MotionModel(**{**draws.config, "pixels_per_cell": None})
    moves.load_state_dict(draws.state_dict(), strict=False)
    torch.nn.init.constant_(draws.conv_drawn.bias, -100.0)
    context, actions = torch.randn(1, LENGTH, *SHAPE), torch.zeros(1, LENGTH, dtype=torch.int64)
    last = torch.rand(1, 3, *PIXELS) - 0.5
    results = [
        Mover(each.eval(), tiny_autoencoder())(context, actions, last, *nothing_moves(last)) for each in (draws, moves)
    ]
    assert all(mine.equal(theirs) for mine, theirs in zip(*results, strict=True))
    torch.nn.init.constant_(draws.conv_drawn.bias, 100.0)
    drawn = Mover(draws, tiny_autoencoder())(context, actions, last, *nothing_moves(last))
    assert not (drawn.context[:, -1] == results[1].context[:, -1]).any(), "drawn cells have codes of their own"


def test_frames_moved_one_from_the_other_are_those_that_are_played(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(motion, "NEWS", 1e9)  # the UNet has nothing to say
    monkeypatch.setattr(motion, "SURE_STD", 1e9)
    loaded, count = remembering(), 3
    engine = begun(GameEngine(loaded))
    actions = torch.tensor([[NOOP] * (LENGTH - 1) + [RIGHT, NOOP, RIGHT]])
    actions[:, : LENGTH - 1] = engine.actions
    window = torch.cat([engine.latents, torch.zeros(1, count, *SHAPE)], dim=1)
    poses, played = [engine.poses.clone()], []
    for number in range(count):
        played.append(engine.step_latents(actions[:, LENGTH - 1 + number]).clone())
        poses.append(engine.poses[:, -1:].clone())
    rolled = loaded.world_model.mover.rolled(window, actions, count, torch.cat(poses, dim=1))
    assert rolled[:, :LENGTH].equal(window[:, :LENGTH]), "what was seen stays"
    assert torch.allclose(rolled[:, LENGTH:], torch.stack(played, dim=1), atol=1e-4)


def of_run(**words: object) -> SimpleNamespace:
    return SimpleNamespace(args=SimpleNamespace(**{"seed": 0, **words}), step=0)


def test_half_of_the_steps_draw_a_few_frames_more_often_than_many() -> None:
    run, counts = of_run(own_frames=16, own_frames_share=0.5), []
    for run.step in range(600):
        counts.append(number_of_own_frames(run))
    own = torch.tensor([count for count in counts if count])
    assert 0.4 < len(own) / len(counts) < 0.6 and own.min() == 1 and own.max() == 16
    assert (own <= 4).float().mean() > 0.5, "the logarithm is even"
    assert number_of_own_frames(of_run(own_frames=0, own_frames_share=1.0)) == 0


def test_a_forgotten_part_shows_the_memory_in_all_seen_frames_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(motion_loss, "FORGOTTEN_SHARE", 1.0)
    loaded = remembering()
    mover = loaded.world_model.mover
    latents, _, poses = beginning()
    of = MotionLoss(of_run(), mover, mover.memory.config.camera, 4)
    seen = of._with_forgotten(latents, poses, [torch.Generator().manual_seed(2)])
    is_lost = motion_loss._middle(*PIXELS, later(torch.Generator().manual_seed(2)))
    cells = torch.nn.functional.adaptive_max_pool2d(is_lost[None].float(), SHAPE[1:])[0] > 0
    assert 4 < int(cells.sum()) < cells.numel() and cells[:, 5].any(), "a part around the middle"
    kept = (seen == latents).all(dim=2)  # (1, T, h, w)
    assert kept[0].equal((~cells).expand_as(kept[0]))
    inside = torch.nn.functional.avg_pool2d(is_lost[None].float(), 8)[0] == 1
    views = mover.memory.look(poses[0]).pixels
    theirs = mover.autoencoder.sample_latents(mover.autoencoder.encode_pixels(views))
    middle = torch.nn.functional.max_pool2d((~inside)[None].float(), 3, 1, 1)[0] == 0  # beyond an encoder's kernels
    assert middle.any() and torch.allclose(seen[0][..., middle], theirs[..., middle], atol=0.02), (
        "latents of noise have 1"
    )


def later(generator: torch.Generator) -> torch.Generator:
    """As it is once a window was chosen."""
    torch.rand(1, generator=generator)
    return generator
