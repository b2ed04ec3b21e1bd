"""Promises of diffusion.py: the formulas, by numbers computed here from the paper's definitions."""

import math

import numpy as np
import pytest
import torch
from tiny_models import Formula, Recorder
from torch import Tensor

from diffusion import Draws, draw, noise_bucket, noise_level, null_context, sample_next, training_loss
from model import make_scheduler

MAX_NOISE, BUCKETS = 0.7, 10
FRAME = (2, 3, 4)  # C, h, w


def alphas_bar() -> np.ndarray:
    """Stable Diffusion's schedule, its square roots shifted to end at 0 and scaled to begin as before (Lin et al.)."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    roots = np.sqrt(np.cumprod(1 - betas))
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2


def by_hand(
    timestep: int, eps: float, level: float = 0.0, is_dropped: bool = False, context_eps: float = 1.0, length: int = 2
) -> Draws:
    """One sample's draws, every tensor flat."""
    return Draws(
        timesteps=torch.tensor([timestep]),
        eps=torch.full((1, *FRAME), eps),
        posterior_eps=torch.zeros(1, length + 1, *FRAME),
        context_eps=torch.full((1, length, *FRAME), context_eps),
        context_level=torch.tensor([level]),
        is_dropped=torch.tensor([is_dropped]),
    )


def window(*values: float) -> Tensor:
    """Latents (1, L + 1, C, h, w), frame k flat of values[k]."""
    return torch.stack([torch.full(FRAME, float(value)) for value in values])[None]


def loss_of(world_model: torch.nn.Module, latents: Tensor, draws: Draws, actions: Tensor | None = None) -> float:
    actions = torch.zeros(latents.shape[0], latents.shape[1] - 1, dtype=torch.int64) if actions is None else actions
    return float(
        training_loss(
            world_model,
            make_scheduler(),
            latents,
            actions,
            draws,
            max_noise_level=MAX_NOISE,
            num_noise_buckets=BUCKETS,
        )
    )


def sample(world_model: torch.nn.Module, context: Tensor, x_t: Tensor, steps: int, guidance: float) -> Tensor:
    actions = torch.arange(context.shape[0] * context.shape[1]).reshape(context.shape[:2])
    buckets = torch.arange(context.shape[0]) + 3
    return sample_next(
        world_model,
        make_scheduler(),
        context,
        actions,
        buckets,
        x_t,
        num_inference_steps=steps,
        guidance_scale=guidance,
    )


# ------------------------------------------------------------------------------------------------ the loss


def test_the_schedule_ends_without_signal() -> None:
    assert make_scheduler().alphas_cumprod.numpy() == pytest.approx(alphas_bar(), abs=1e-4)
    assert make_scheduler().alphas_cumprod[-1] == 0


@pytest.mark.parametrize("timestep", [0, 250, 999])
def test_the_loss_is_the_mean_square_error_on_v(timestep: int) -> None:
    alpha_bar = alphas_bar()[timestep]
    x0, eps, prediction = 2.0, -0.5, 0.25
    v = math.sqrt(alpha_bar) * eps - math.sqrt(1 - alpha_bar) * x0
    constant = Formula(lambda noised, timesteps, context: torch.full_like(noised, prediction))
    loss = loss_of(constant, window(7, 8, x0), by_hand(timestep, eps))
    assert loss == pytest.approx((prediction - v) ** 2, rel=1e-3)


def test_the_network_sees_the_target_noised_by_the_schedule() -> None:
    alpha_bar = alphas_bar()[400]
    model = Formula(lambda noised, timesteps, context: torch.zeros_like(noised))
    recorder = Recorder(model)
    loss_of(model, window(7, 8, 2.0), by_hand(400, -0.5))
    expected = math.sqrt(alpha_bar) * 2.0 + math.sqrt(1 - alpha_bar) * -0.5
    assert recorder.calls[0].noised.flatten().tolist() == pytest.approx([expected] * 24, rel=1e-3)
    assert recorder.calls[0].timesteps.tolist() == [400]


def test_a_perfect_prediction_costs_nothing() -> None:
    root, rest = math.sqrt(alphas_bar()[600]), math.sqrt(1 - alphas_bar()[600])
    oracle = Formula(lambda noised, timesteps, context: root * (noised - root * 2.0) / rest - rest * 2.0)
    assert loss_of(oracle, window(7, 8, 2.0), by_hand(600, -0.5)) < 1e-6


# ------------------------------------------------------------------------------------------------ the context's noise


def test_the_context_gets_the_noise_its_bucket_announces_and_the_target_none() -> None:
    model = Formula(lambda noised, timesteps, context: torch.zeros_like(noised))
    recorder = Recorder(model)
    latents, actions = window(10, 20, 30), torch.tensor([[1, 2]])
    loss_of(model, latents, by_hand(999, 0.0, level=0.36, context_eps=-2.0), actions)
    seen = recorder.calls[0]
    assert seen.context[0, :, 0, 0, 0].tolist() == pytest.approx([9.28, 19.28])  # 0.36 * -2
    assert seen.noise_buckets.tolist() == [5]  # 0.35 <= 0.36 < 0.42
    assert seen.actions.tolist() == [[1, 2]]
    assert float(seen.noised.abs().max()) == 0  # t = 999 keeps nothing of x0, and eps is 0 here
    assert latents[0, :, 0, 0, 0].tolist() == [10, 20, 30]  # the caller's latents stay


def test_the_ten_noise_buckets_are_equal() -> None:
    levels = (torch.arange(7000) + 0.5) / 7000 * MAX_NOISE
    assert torch.bincount(noise_bucket(levels, MAX_NOISE, BUCKETS)).tolist() == [700] * BUCKETS


@pytest.mark.parametrize(("level", "bucket"), [(0.0, 0), (0.0699, 0), (0.0701, 1), (0.6299, 8), (0.6301, 9), (0.7, 9)])
def test_the_edges_of_the_noise_buckets(level: float, bucket: int) -> None:
    assert noise_bucket(torch.tensor([level]), MAX_NOISE, BUCKETS).tolist() == [bucket]


def test_announcing_bucket_k_promises_noise_of_k_times_0_07() -> None:
    levels = [noise_level(bucket, MAX_NOISE, BUCKETS) for bucket in range(BUCKETS)]
    assert levels == pytest.approx([0.0, 0.07, 0.14, 0.21, 0.28, 0.35, 0.42, 0.49, 0.56, 0.63])
    inside = torch.tensor(levels) + 1e-4  # just inside the bucket that training gave the same id
    assert noise_bucket(inside, MAX_NOISE, BUCKETS).tolist() == list(range(BUCKETS))


# ------------------------------------------------------------------------------------------------ the null input


def test_the_null_context_is_zero_in_every_frame_and_channel() -> None:
    context = torch.randn(2, 5, *FRAME)
    assert null_context(context).shape == context.shape
    assert not null_context(context).any()


def test_a_dropped_sample_sees_zeros_in_the_whole_context_and_the_others_keep_theirs() -> None:
    model = Formula(lambda noised, timesteps, context: torch.zeros_like(noised))
    recorder = Recorder(model)
    kept, dropped = by_hand(500, 0.1, level=0.2), by_hand(500, 0.1, level=0.2, is_dropped=True)
    both = Draws(*(torch.cat(pair) for pair in zip(vars(kept).values(), vars(dropped).values(), strict=True)))
    actions = torch.tensor([[1, 2], [2, 1]])
    loss_of(model, torch.cat([window(3, 4, 5)] * 2), both, actions)
    seen = recorder.calls[0]
    assert seen.context[0, :, 0, 0, 0].tolist() == pytest.approx([3.2, 4.2])
    assert not seen.context[1].any()
    assert seen.noised[0].equal(seen.noised[1])  # the target is not part of the null
    assert seen.actions.equal(actions)  # guidance is on frames only


def test_guidance_compares_with_zeros_in_the_whole_context_and_the_same_actions() -> None:
    model = Formula(lambda noised, timesteps, context: torch.zeros_like(noised))
    recorder = Recorder(model)
    context, x_t = torch.randn(2, 3, *FRAME), torch.randn(2, *FRAME)
    sample(model, context, x_t, steps=1, guidance=1.5)
    (seen,) = recorder.calls
    assert seen.context[:2].equal(context) and not seen.context[2:].any()
    assert seen.noised.equal(torch.cat([x_t, x_t]))
    assert seen.actions.tolist() == [[0, 1, 2], [3, 4, 5]] * 2
    assert seen.noise_buckets.tolist() == [3, 4, 3, 4]


# ------------------------------------------------------------------------------------------------ guidance, sampling


def test_guidance_goes_from_the_null_towards_and_beyond_the_context() -> None:
    # v is 3 with a context, 1 without; at t = 999 nothing is left of x0, so one step gives x0 = -v.
    model = Formula(lambda noised, timesteps, context: 1 + 2 * (context[:, 0] != 0).float())
    context, x_t = torch.ones(2, 3, *FRAME), torch.randn(2, *FRAME)
    for scale, v in [(1.0, 3.0), (1.5, 1 + 1.5 * 2), (0.0, 1.0), (4.0, 9.0)]:
        assert sample(model, context, x_t, 1, scale).flatten().tolist() == pytest.approx([-v] * 48, rel=1e-5)


def test_no_guidance_costs_one_pass_a_step() -> None:
    model = Formula(lambda noised, timesteps, context: torch.zeros_like(noised))
    recorder = Recorder(model)
    sample(model, torch.ones(2, 3, *FRAME), torch.randn(2, *FRAME), steps=4, guidance=1.0)
    assert [len(call.noised) for call in recorder.calls] == [2] * 4


@pytest.mark.parametrize(("steps", "timesteps"), [(1, [999]), (2, [999, 499]), (4, [999, 749, 499, 249])])
@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_sampling_with_a_perfect_oracle_gives_x0(steps: int, timesteps: list[int], guidance: float) -> None:
    torch.manual_seed(steps)
    x0 = torch.randn(2, *FRAME)
    table = torch.tensor(alphas_bar(), dtype=torch.float32)

    def v_of_x0(noised: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        root, rest = (x.sqrt()[:, None, None, None] for x in (table[timesteps], 1 - table[timesteps]))
        target = x0.repeat(len(noised) // len(x0), 1, 1, 1)
        return root * (noised - root * target) / rest - rest * target

    oracle = Formula(v_of_x0)
    recorder = Recorder(oracle)
    result = sample(oracle, torch.randn(2, 3, *FRAME), torch.randn(2, *FRAME), steps, guidance)
    assert [int(call.timesteps[0]) for call in recorder.calls] == timesteps
    assert torch.allclose(result, x0, atol=2e-3)


# ------------------------------------------------------------------------------------------------ the draws


def drawn(
    step: int,
    indices: range | list[int],
    seed: int = 0,
    dropout: float = 0.1,
    timesteps: range | list[int] = range(1000),
) -> Draws:
    return draw(
        seed,
        step,
        indices,
        (3, *FRAME),
        train_timesteps=timesteps,
        max_noise_level=MAX_NOISE,
        context_dropout=dropout,
        device="cpu",
    )


def test_draws_depend_on_seed_step_and_index_alone() -> None:
    whole = drawn(7, range(4))
    halves = drawn(7, range(2)), drawn(7, range(2, 4))  # two processes, or two micro-batches
    for name, value in vars(whole).items():
        assert value.equal(torch.cat([getattr(half, name) for half in halves])), name
    for other in (drawn(8, range(4)), drawn(7, range(4), seed=1), drawn(7, range(4, 8))):
        for name in ("eps", "posterior_eps", "context_eps", "context_level"):
            assert not (getattr(whole, name) == getattr(other, name)).any(), name


def test_draws_have_the_papers_distributions() -> None:
    draws = drawn(0, range(4000))
    fractions = torch.bincount(draws.timesteps // 100, minlength=10) / 4000
    assert draws.timesteps.min() < 5 and draws.timesteps.max() > 994
    assert fractions.tolist() == pytest.approx([0.1] * 10, abs=0.02)
    assert draws.context_level.min() >= 0 and draws.context_level.max() < MAX_NOISE
    buckets = torch.bincount(noise_bucket(draws.context_level, MAX_NOISE, BUCKETS), minlength=BUCKETS) / 4000
    assert buckets.tolist() == pytest.approx([0.1] * 10, abs=0.02)
    assert float(draws.is_dropped.float().mean()) == pytest.approx(0.1, abs=0.02)
    for eps in (draws.eps, draws.posterior_eps, draws.context_eps):
        assert float(eps.mean()) == pytest.approx(0, abs=0.02) and float(eps.std()) == pytest.approx(1, abs=0.02)
    levels = torch.stack([draws.context_level, draws.timesteps.float(), draws.is_dropped.float()])
    assert torch.corrcoef(levels).fill_diagonal_(0).abs().max() < 0.06  # drawn apart
    assert not drawn(0, range(100), dropout=0.0).is_dropped.any()
