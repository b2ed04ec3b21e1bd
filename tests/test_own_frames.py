"""Promises of the end of a training: --own_frames shows frames the model drew itself, those that play would draw;
--context_noise brings the past frames nearer to what is played."""

from pathlib import Path

import torch
from small_runs import call, changed_words, logged, random_latents, world_model_words
from test_command_lines import quick_refusal
from tiny_models import NOOP, RIGHT, tiny_world_model

from diffusion import with_own_frames
from engine import GameEngine
from model import load_world_model

LENGTH, SHAPE = 4, (4, 8, 10)


def test_the_own_frames_are_those_that_the_engine_plays() -> None:
    loaded, count = tiny_world_model(), 3
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, LENGTH + count + 1, *SHAPE, generator=generator)
    actions = torch.randint(0, 3, (2, LENGTH + count), generator=generator)
    engine = GameEngine(loaded)
    engine.reset(latents[:, :LENGTH], actions[:, : LENGTH - 1], [5, 6])
    noise, played = [], []
    for number in range(count):
        noise.append(engine._noise(0, torch.Size(SHAPE)))
        played.append(engine.step_latents(actions[:, LENGTH - 1 + number]))
    window, chosen = with_own_frames(
        loaded.world_model,
        loaded.scheduler,
        latents,
        actions,
        torch.stack(noise, dim=1),
        num_inference_steps=engine.num_inference_steps,
    )
    assert window.shape == (2, LENGTH + 1, *SHAPE) and chosen.equal(actions[:, count:])
    assert window[:, 0].equal(latents[:, count]) and window[:, -1].equal(latents[:, -1])  # recorded ones stay
    assert torch.allclose(window[:, 1:-1], torch.stack(played, dim=1), atol=1e-5)


def test_without_own_frames_the_newest_window_is_left_as_it_is() -> None:
    loaded = tiny_world_model()
    latents, actions = torch.randn(1, LENGTH + 4, *SHAPE), torch.tensor([[NOOP, NOOP, NOOP, RIGHT, NOOP, RIGHT, RIGHT]])
    none = torch.zeros(1, 0, *SHAPE)
    window, chosen = with_own_frames(
        loaded.world_model, loaded.scheduler, latents, actions, none, num_inference_steps=1
    )
    assert window.equal(latents[:, -LENGTH - 1 :]) and chosen.tolist() == [[RIGHT, NOOP, RIGHT, RIGHT]]


def test_a_run_goes_on_with_own_frames_and_resumes_exactly(tmp_path_factory, tmp_path: Path) -> None:
    base = tmp_path_factory.getbasetemp()
    random_latents(base)
    flags = {"lr_warmup_steps": 0, "own_frames": 3, "own_frames_share": 0.7, "checkpointing_steps": 3}
    for name, ends in (("whole", [6]), ("resumed", [3, 6]), ("plain", [6])):
        for end in ends:
            words = changed_words(world_model_words(base, tmp_path / name), **flags, max_train_steps=end)
            call("train_text_to_image.py", *(changed_words(words, own_frames=0) if name == "plain" else words))
    ends = [tmp_path / name / "checkpoint-6" / "model.safetensors" for name in ("whole", "resumed", "plain")]
    assert ends[0].read_bytes() == ends[1].read_bytes() != ends[2].read_bytes()
    assert all(row["loss"] > 0 for row in logged(tmp_path / "whole") if "loss" in row)


def test_as_many_beginnings_are_kept_as_are_asked_for(tmp_path_factory, tmp_path: Path) -> None:
    words = world_model_words(tmp_path_factory.getbasetemp(), tmp_path / "run")
    call("train_text_to_image.py", *changed_words(words, max_train_steps=1), "--num_start_contexts", 3)
    assert load_world_model(tmp_path / "run").start_contexts.latents.shape == (3, LENGTH, *SHAPE)


def test_the_context_noise_is_the_presets_unless_a_smaller_one_is_named(tmp_path_factory, tmp_path: Path) -> None:
    base = tmp_path_factory.getbasetemp()
    weights = []
    for level in (None, 0.7, 0.1):
        words = changed_words(world_model_words(base, tmp_path / str(level)), max_train_steps=2, lr_warmup_steps=0)
        call("train_text_to_image.py", *words, *(() if level is None else ("--context_noise", level)))
        weights.append((tmp_path / str(level) / "checkpoint-2" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]
    words = changed_words(world_model_words(base, tmp_path / "loud"), context_noise=0.8)
    line = quick_refusal("train_text_to_image.py", *words)
    assert "--context_noise 0.8" in line and "up to 0.7" in line and not (tmp_path / "loud").exists()
