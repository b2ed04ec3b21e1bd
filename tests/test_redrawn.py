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
from motion import MotionModel, Mover, Redrawn, foresee
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


def test_a_lamp_that_one_key_lights_is_on_or_off_and_what_was_lost_comes_back() -> None:
    """The key lights it seven times in ten, the others never. A weapon is there always, and lost every second time."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    made = MotionModel(*SHAPE, num_actions=3, width=16, has_memory=True, pixels_per_cell=8)
    optimizer = torch.optim.AdamW(made.parameters(), 5e-3)
    lamp, weapon = (..., slice(24, 40), slice(32, 48)), (..., slice(48, 64), slice(32, 48))
    for _ in range(150):
        actions = torch.randint(0, 3, (8, LENGTH), generator=generator)
        last = torch.rand(8, 3, *PIXELS, generator=generator) * 0.6 - 0.3
        target = last.clone()
        is_lit = (actions[:, -1] == RIGHT) & (torch.rand(8, generator=generator) < 0.7)
        target[lamp] = torch.where(is_lit[:, None, None, None], 0.9, target[lamp])
        target[weapon] = 0.6
        last[::2][weapon] = 0.6
        latents = torch.randn(8, LENGTH, *SHAPE, generator=generator)
        made_of_it = foresee(made, latents, actions, last, nothing_moves(last))
        mixture_loss(last, made_of_it.redrawn, target).backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)  # as the trainer does
        optimizer.step()
        optimizer.zero_grad()
    last = torch.zeros(1, 3, *PIXELS)
    for key, brightness in ((RIGHT, 0.9), (NOOP, 0.0)):
        actions = torch.full((1, LENGTH), key)
        shown = foresee(made, torch.randn(1, LENGTH, *SHAPE), actions, last, nothing_moves(last)).shown
        assert abs(float(shown[lamp].mean()) - brightness) < 0.1, key
        assert abs(float(shown[weapon].mean()) - 0.6) < 0.1
        shown[lamp], shown[weapon] = 0, 0
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


def recorded(number: int) -> dict[str, Tensor]:
    """A batch of two windows of `number` frames and the next one, in the room."""
    generator = torch.Generator().manual_seed(4)
    moments = torch.randn(2, number + 1, *SHAPE, generator=generator)
    poses = torch.randn(2, number + 1, 4, generator=generator).cumsum(dim=1) + beginning()[2][:1, :1]
    depth = torch.randint(0, 3, (2, 16, 20), generator=generator).to(torch.uint8)
    return {
        "moments": moments,
        "actions": torch.randint(0, 3, (2, number), generator=generator),
        "poses": poses,
        "depth": depth,
    }


def loss_of(monkeypatch: pytest.MonkeyPatch, count: int, **rates: float) -> MotionLoss:
    """Of `remembering`, with `count` frames of its own."""
    for name, rate in {"MAX_NOISE_LEVEL": 0.0, "FORGOTTEN_SHARE": 0.0, **rates}.items():
        monkeypatch.setattr(motion_loss, name, rate)
    monkeypatch.setattr(motion_loss, "number_of_own_frames", lambda run: count)
    mover = remembering().world_model.mover
    run = SimpleNamespace(args=SimpleNamespace(seed=0), step=0, first_index=lambda micro, size: 0, model=mover.motion)
    return MotionLoss(run, mover, mover.memory.config.camera, 4)


def test_own_frames_are_the_last_ones_seen_and_lead_to_the_recorded_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, told = recorded(LENGTH + 3), []
    of = loss_of(monkeypatch, 2)
    monkeypatch.setattr(of.mover, "rolled", lambda *words: (told.append(words), words[0])[1])
    own = of(batch, 0)
    latents = of.mover.autoencoder.sample_latents(batch["moments"])
    (seen, actions, count, poses) = told[0]
    assert count == 2 and seen.equal(latents[:, 1:-1]) and actions.equal(batch["actions"][:, 1:-1])
    assert poses[:, :-1].equal(batch["poses"][:, 1:-1]), "as many, and the next one"
    assert own.equal(loss_of(monkeypatch, 0)(batch, 0)), "who draws what was recorded is judged as if it had not drawn"
    del batch["moments"]
    batch["moments"] = recorded(LENGTH + 3)["moments"][:, 3:]
    batch["actions"], batch["poses"] = batch["actions"][:, 3:], batch["poses"][:, 3:]
    assert own.equal(loss_of(monkeypatch, 0)(batch, 0)), "only the newest frames count"


def test_with_own_frames_in_bfloat16_every_weight_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass without gradients before the one with them must not leave its casts behind."""
    of = loss_of(monkeypatch, 3, MAX_NOISE_LEVEL=0.3, FORGOTTEN_SHARE=0.5)
    of.mover.motion.requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        of(recorded(LENGTH + 3), 0).backward()
    assert not [name for name, weight in of.mover.motion.named_parameters() if weight.grad is None]


def later(generator: torch.Generator) -> torch.Generator:
    """As it is once a window was chosen."""
    torch.rand(1, generator=generator)
    return generator
