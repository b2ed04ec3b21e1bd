"""Promises of training.py, on a network of one number: whole checkpoints, exact resume, clocks that add up."""

import json
import os
import signal
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from torch import nn

import command_line
import run_folder
import training
from command_line import BadInput
from run_folder import check_identity, choose_checkpoint, list_checkpoints
from training import TrainingRun, make_accelerator, uses_channels_last

RATE = 0.01


@pytest.fixture
def begin(tmp_path: Path) -> Callable[..., TrainingRun]:
    """begin(**flags) -> a run of a one-number network in the same folder each time, as a new session would."""

    def begin_run(
        identity: dict | None = None, model: nn.Module | None = None, optimizer: str = "adamw", **flags: object
    ) -> TrainingRun:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        args = arguments(**{"output_dir": tmp_path / "run", **flags})
        run = TrainingRun(
            args,
            make_accelerator(args),
            model or one_number(),
            identity or {"seed": 0},
            learning_rate=RATE,
            unit="frames",
            optimizer=optimizer,
        )
        run.begin()
        return run

    return begin_run


def arguments(**flags: object) -> Namespace:
    """The shared training flags at their defaults, but for `flags`."""
    parser = command_line.parser(None)
    command_line.add_training_flags(parser)
    command_line.add_device_flag(parser)
    parser.add_argument("--output_dir")
    words = {"device": "cpu", "report_to": "none", "lr_warmup_steps": 4, **flags}
    return parser.parse_args(
        [word for name, value in words.items() for word in [f"--{name}", str(value)][: 1 if value is True else 2]]
    )


def one_number() -> nn.Linear:
    """y = 1 * x, to be trained."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    return model


def train(run: TrainingRun, steps: int) -> list[float]:
    """Pulls the number towards a target that depends on the step alone; returns it after each step."""
    values = []
    for _ in range(steps):
        with run.accelerator.accumulate(run.model):
            target = torch.tensor([[float(run.step % 3) - 2]])
            run.update((run.model(torch.ones(1, 1)) - target).square().mean())
        run.finish_step(items=1)
        values.append(float(run.parameters[0]))
    return values


def number(run: TrainingRun) -> float:
    return float(run.parameters[0])


# ------------------------------------------------------------------------------------------------ resume


@pytest.mark.parametrize(
    ("optimizer", "lr_scheduler"), [("adamw", "constant_with_warmup"), ("adamw", "cosine"), ("adafactor", "constant")]
)
def test_half_the_steps_then_a_new_session_equal_all_the_steps(
    begin: Callable[..., TrainingRun], tmp_path: Path, optimizer: str, lr_scheduler: str
) -> None:
    flags = {"max_train_steps": 10, "lr_scheduler": lr_scheduler, "optimizer": optimizer}
    whole = train(begin(**flags, output_dir=tmp_path / "whole"), 10)
    run = begin(**flags)
    first = train(run, 5)
    run.save()
    resumed = begin(**flags)
    assert resumed.step == 5 and resumed.first_step == 5
    assert [*first, *train(resumed, 5)] == whole
    assert resumed.ema.optimization_step == 10


def test_the_learning_rate_warms_up_and_goes_on_warm_after_a_resume(begin: Callable[..., TrainingRun]) -> None:
    run = begin(lr_warmup_steps=4)
    rates = []
    for _ in range(2):
        rates.append(run.optimizer.param_groups[0]["lr"])
        train(run, 1)
    run.save()
    resumed = begin(lr_warmup_steps=4)
    for _ in range(4):
        rates.append(resumed.optimizer.param_groups[0]["lr"])
        train(resumed, 1)
    assert rates == pytest.approx([0, RATE / 4, RATE / 2, 3 * RATE / 4, RATE, RATE])


def test_the_saved_average_and_optimizer_come_back_to_the_bit(begin: Callable[..., TrainingRun]) -> None:
    run = begin()
    train(run, 6)
    run.save()
    resumed = begin()
    assert number(resumed) == number(run)
    assert resumed.ema.shadow_params[0].equal(run.ema.shadow_params[0])
    (one,), (two,) = (tuple(each.optimizer.state_dict()["state"].values()) for each in (run, resumed))
    assert {name: float(value) for name, value in one.items()} == {name: float(value) for name, value in two.items()}
    assert one["step"] == 6


def test_nothing_in_a_checkpoint_is_a_pickle(begin: Callable[..., TrainingRun]) -> None:
    run = begin()
    train(run, 1)
    run.save()
    (checkpoint,) = list_checkpoints(run.output_dir)
    names = sorted(path.name for path in checkpoint.iterdir())
    assert names == ["ema.safetensors", "model.safetensors", "optimizer.safetensors", "state.json"]


def test_resume_none_refuses_to_train_over_a_run_and_a_name_picks_a_checkpoint(
    begin: Callable[..., TrainingRun],
) -> None:
    run = begin()
    values = train(run, 4)
    for step in (2, 4):
        run.step = step
        run.save()
    assert choose_checkpoint(run.output_dir, "latest").name == "checkpoint-4"
    with pytest.raises(BadInput, match="already holds checkpoint-4; go on with --resume_from_checkpoint latest"):
        begin(resume_from_checkpoint="none")
    with pytest.raises(BadInput, match="checkpoint-7: no such checkpoint; .* has: checkpoint-2, checkpoint-4"):
        begin(resume_from_checkpoint="checkpoint-7")
    assert begin(resume_from_checkpoint="checkpoint-2").step == 2
    assert number(begin()) == values[-1]


def test_checkpoints_are_ordered_by_number_and_only_the_newest_are_kept(begin: Callable[..., TrainingRun]) -> None:
    run = begin(checkpoints_total_limit=2)
    for step in (8, 9, 10, 100):
        run.step = step
        run.save()
    assert [path.name for path in list_checkpoints(run.output_dir)] == ["checkpoint-10", "checkpoint-100"]
    assert not list(run.output_dir.glob("checkpoint-[89]"))


def test_what_makes_a_run_this_run_may_not_change(begin: Callable[..., TrainingRun], tmp_path: Path) -> None:
    begin(identity={"preset": "smoke", "seed": 0})  # a run that saved nothing is no run yet
    run = begin(identity={"preset": "small", "seed": 0})
    run.save()
    begin(identity={"preset": "small", "seed": 0})
    with pytest.raises(BadInput, match="was begun with preset small, not smoke"):
        begin(identity={"preset": "smoke", "seed": 0})
    with pytest.raises(BadInput, match="was begun with seed 0, not 1"):
        check_identity(tmp_path / "run", {"preset": "small", "seed": 1})


def test_a_long_setting_that_differs_is_named_not_printed(begin: Callable[..., TrainingRun]) -> None:
    begin(identity={"unet": {"widths": [1, 2]}}).save()
    with pytest.raises(BadInput, match=r"was begun with another unet \(see run.json there\); use"):
        begin(identity={"unet": {"widths": [1, 3]}})


# ------------------------------------------------------------------------------------------------ kills


def test_a_checkpoint_killed_in_the_middle_is_absent_and_the_last_whole_one_resumes(
    begin: Callable[..., TrainingRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin()
    train(run, 2)
    run.save()
    value = number(run)
    train(run, 2)
    save = training.save_tensors

    def save_then_die(tensors: dict, path: Path) -> None:
        save(tensors, path)
        if path.name == "ema.safetensors":
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(training, "save_tensors", save_then_die)
    child = os.fork()
    if child == 0:
        run.save()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert [path.name for path in list_checkpoints(run.output_dir)] == ["checkpoint-2"]
    assert not (run.output_dir / "checkpoint-4").exists()
    resumed = begin()
    assert resumed.step == 2 and number(resumed) == value
    assert sorted(path.name for path in run.output_dir.iterdir()) == ["checkpoint-2", "run.json"]  # no litter


def test_a_checkpoint_cut_short_on_disk_is_refused_by_name(begin: Callable[..., TrainingRun]) -> None:
    run = begin()
    train(run, 1)
    run.save()
    weights = run.output_dir / "checkpoint-1" / "model.safetensors"
    os.truncate(weights, 20)
    with pytest.raises(BadInput, match=r"checkpoint-1 is damaged \(model.safetensors is cut short\), and there is no"):
        begin()


# ------------------------------------------------------------------------------------------------ weights gone wrong


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_weights_that_blew_up_are_not_saved_and_the_last_good_checkpoint_stays(
    begin: Callable[..., TrainingRun], value: float
) -> None:
    run = begin()
    train(run, 2)
    run.save()
    good = number(run)
    train(run, 1)
    run.parameters[0].data.fill_(value)
    saved_models: list[int] = []
    with pytest.raises(BadInput, match=r"the weights weight are not finite .* goes on from checkpoint-2, with a lower"):
        run.save(lambda: saved_models.append(run.step))
    assert not saved_models
    assert [path.name for path in list_checkpoints(run.output_dir)] == ["checkpoint-2"]
    resumed = begin()
    assert resumed.step == 2 and number(resumed) == good
    resumed.save(lambda: saved_models.append(resumed.step))
    assert saved_models == [2]


def test_a_loss_that_is_no_number_keeps_weights_from_being_saved(begin: Callable[..., TrainingRun]) -> None:
    run = begin()
    run.loss_sum += float("nan")
    with pytest.raises(BadInput, match="the loss became nan before step 0; .* begin again, with a lower"):
        run.save()
    assert not list_checkpoints(run.output_dir)


def test_a_checkpoint_of_weights_that_blew_up_is_not_resumed(begin: Callable[..., TrainingRun]) -> None:
    run = begin()
    train(run, 1)
    run.save()
    for name in ("ema", "model"):
        weights = run.output_dir / "checkpoint-1" / f"{name}.safetensors"
        run_folder.save_tensors({"weight": torch.full((1, 1), float("inf"))}, weights)
        with pytest.raises(BadInput, match="checkpoint-1: its weights weight are not finite numbers; name an older"):
            begin()


# ------------------------------------------------------------------------------------------------ how it computes


def small_network() -> nn.Module:
    """A convolution, an activation, a matrix: what channels-last and a compiler change."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 2))


def train_small(run: TrainingRun, steps: int) -> None:
    for _ in range(steps):
        inputs = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(run.step))
        with run.accelerator.accumulate(run.model):
            run.update(run.model(inputs).square().mean())
        run.finish_step(items=3)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_channels_last_changes_the_layout_in_memory_and_nothing_on_disk(
    begin: Callable[..., TrainingRun], tmp_path: Path, optimizer: str
) -> None:
    finals = []
    for first, then in (("no", "no"), ("yes", "yes"), ("yes", "no"), ("no", "yes")):
        flags = {"output_dir": tmp_path / f"{first}-{then}", "optimizer": optimizer}
        run = begin(model=small_network(), channels_last=first, **flags)
        train_small(run, 3)
        run.save()
        resumed = begin(model=small_network(), channels_last=then, **flags)
        train_small(resumed, 3)
        is_last = [p.is_contiguous(memory_format=torch.channels_last) for p in resumed.parameters if p.ndim == 4]
        assert is_last == [then == "yes"] * 2
        finals.append([p.detach().clone() for p in resumed.parameters])
    for other in finals[1:]:
        for one, two in zip(finals[0], other, strict=True):
            assert torch.allclose(one, two, atol=1e-5)


def test_channels_last_comes_by_itself_on_cuda_and_with_bf16() -> None:
    assert uses_channels_last(arguments(), torch.device("cuda"))
    assert uses_channels_last(arguments(mixed_precision="bf16"), torch.device("cpu"))
    assert not uses_channels_last(arguments(), torch.device("cpu"))
    assert not uses_channels_last(arguments(channels_last="no"), torch.device("cuda"))


def test_half_precision_computes_while_weights_gradients_and_averages_stay_float32(
    begin: Callable[..., TrainingRun],
) -> None:
    run = begin(model=small_network(), mixed_precision="bf16")
    seen: list[torch.dtype] = []
    for layer in (run.model[0], run.model[4]):
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with run.accelerator.accumulate(run.model), run.accelerator.autocast():
        run.accelerator.backward(run.model(torch.ones(3, 4, 6, 6)).square().mean())
    assert seen == [torch.bfloat16] * 2
    of_training = [*run.parameters, *(parameter.grad for parameter in run.parameters), *run.ema.shadow_params]
    assert {tensor.dtype for tensor in of_training} == {torch.float32}
    with run.averaged():
        run.model(torch.ones(3, 4, 6, 6))
    assert seen[2:] == [torch.float32] * 2, "as it plays"
    run.model(torch.ones(3, 4, 6, 6))
    assert seen[4:] == [torch.bfloat16] * 2


@pytest.mark.slow
def test_a_compiled_run_saves_the_same_names_and_goes_on_without_the_compiler(
    begin: Callable[..., TrainingRun], tmp_path: Path
) -> None:
    plain = begin(model=small_network(), output_dir=tmp_path / "plain")
    train_small(plain, 4)
    plain.save()
    compiled = begin(model=small_network(), torch_compile=True)
    assert isinstance(compiled.model, torch._dynamo.OptimizedModule)
    train_small(compiled, 2)
    compiled.save()
    resumed = begin(model=small_network())
    train_small(resumed, 2)
    resumed.save()
    for name in ("model", "ema", "optimizer"):
        one, two = (load_file(run.output_dir / "checkpoint-4" / f"{name}.safetensors") for run in (plain, resumed))
        assert list(one) == list(two)
        assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one), name


def test_compiling_without_a_compiler_is_refused(
    begin: Callable[..., TrainingRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BadInput, match="--torch_compile: needs a C"):
        begin(torch_compile=True)


def test_tensorfloat_is_off_unless_asked_for(begin: Callable[..., TrainingRun]) -> None:
    begin(allow_tf32=True)
    assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
    begin()
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32


# ------------------------------------------------------------------------------------------------ clocks


def test_max_train_minutes_counts_the_sessions_before(
    begin: Callable[..., TrainingRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: clock[0])
    run = begin(max_train_minutes=2)
    clock[0] += 90
    assert not run.is_over() and run.trained_seconds == 90
    train(run, 1)
    run.save()
    clock[0] += 1e6  # the machine was off
    resumed = begin(max_train_minutes=2)
    assert resumed.trained_seconds == 90 and not resumed.is_over()
    clock[0] += 29
    assert not resumed.is_over()
    clock[0] += 1
    assert resumed.is_over()
    assert not begin(max_train_minutes=3).is_over()  # more time goes on


def test_max_train_steps_ends_a_run_and_a_larger_number_goes_on(begin: Callable[..., TrainingRun]) -> None:
    run = begin(max_train_steps=2)
    train(run, 1)
    assert not run.is_over()
    train(run, 1)
    assert run.is_over()
    run.save()
    assert begin(max_train_steps=2).is_over() and not begin(max_train_steps=3).is_over()


def test_housekeeping_is_due_every_so_many_steps_but_not_where_a_session_starts(
    begin: Callable[..., TrainingRun],
) -> None:
    run = begin()
    due = []
    for _ in range(6):
        if run.is_due(3):
            due.append(run.step)
        train(run, 1)
    assert due == [3]
    run.save()
    assert not begin().is_due(3)


# ------------------------------------------------------------------------------------------------ averages, numbers


def test_the_average_follows_the_weights_by_the_decay_of_each_step(begin: Callable[..., TrainingRun]) -> None:
    run = begin(ema_decay=0.5)
    average = 1.0
    for step, value in enumerate(train(run, 5)):
        decay = min(0.5, 1 - (1 + step) ** -0.75)  # diffusers' warm-up, power 3/4
        average = decay * average + (1 - decay) * value
    assert float(run.ema.shadow_params[0]) == pytest.approx(average, rel=1e-6)
    weight = number(run)
    with run.averaged():
        assert number(run) == pytest.approx(average, rel=1e-6)
    assert number(run) == weight
    with pytest.raises(ZeroDivisionError), run.averaged():
        raise ZeroDivisionError
    assert number(run) == weight


def test_micro_batches_of_one_step_give_the_mean_gradient(begin: Callable[..., TrainingRun], tmp_path: Path) -> None:
    inputs = torch.tensor([[1.0], [3.0]])
    weights = []
    for accumulation, batches in ((1, [inputs]), (2, [inputs[:1], inputs[1:]])):
        flags = {"gradient_accumulation_steps": accumulation, "output_dir": tmp_path / str(accumulation)}
        run = begin(**flags, lr_warmup_steps=0)
        for batch in batches:
            with run.accelerator.accumulate(run.model):
                run.update((0.01 * run.model(batch)).square().mean())  # small: clipping at 1 must not hide a sum
        (state,) = run.optimizer.state_dict()["state"].values()
        weights.append((number(run), float(state["exp_avg"])))
        run.finish_step(items=2)
        assert float(run.loss_sum) == pytest.approx(1e-4 * 5)
    assert weights[0] == pytest.approx(weights[1], rel=1e-6)
    assert weights[0][1] == pytest.approx(0.1 * 2 * 1e-4 * 5, rel=1e-5)  # (1 - beta1) * d/dw of 1e-4 * 5 w^2


def test_gradients_are_clipped_to_length_one_at_every_step(begin: Callable[..., TrainingRun]) -> None:
    run = begin()
    average = 0.0
    for _ in range(3):  # an exhausted iterator of parameters would clip the first time only
        with run.accelerator.accumulate(run.model):
            run.update((1000 * run.model(torch.ones(1, 1))).square().mean())
        average = 0.9 * average + 0.1
        (state,) = run.optimizer.state_dict()["state"].values()
        assert float(state["exp_avg"]) == pytest.approx(average, rel=1e-5)


def test_a_data_set_that_has_grown_is_told_when_the_run_goes_on(
    begin: Callable[..., TrainingRun], capsys: pytest.CaptureFixture[str]
) -> None:
    run = begin(dataloader_num_workers=0)
    next(run.batches(torch.utils.data.TensorDataset(torch.zeros(5)), 1))
    run.step = 1
    run.save()
    next(begin(dataloader_num_workers=0).batches(torch.utils.data.TensorDataset(torch.zeros(5)), 1))
    assert "items" not in capsys.readouterr().out
    next(begin(dataloader_num_workers=0).batches(torch.utils.data.TensorDataset(torch.zeros(7)), 1))
    assert "the data set has 7 items, 5 before" in capsys.readouterr().out


def test_fp16_is_refused_on_the_cpu_where_it_would_do_nothing(begin: Callable[..., TrainingRun]) -> None:
    with pytest.raises(BadInput, match="--mixed_precision fp16"):
        begin(mixed_precision="fp16", device="cpu")


def test_a_wrong_row_read_by_a_worker_is_one_line(begin: Callable[..., TrainingRun]) -> None:
    class Broken(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> int:
            raise BadInput("episode_7.parquet: row 3 is broken; record it again")

    with pytest.raises(BadInput) as caught:
        next(begin(dataloader_num_workers=1).batches(Broken(), 1))
    assert str(caught.value) == "episode_7.parquet: row 3 is broken; record it again"


def test_what_killed_writers_left_is_removed_when_the_run_goes_on(
    begin: Callable[..., TrainingRun], tmp_path: Path
) -> None:
    run = begin()
    leftover = run.output_dir / ".checkpoint-3.partial-0123abcd"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    begin()
    assert not leftover.exists()


def test_numbers_go_to_the_console_and_to_a_file_in_the_same_line(
    begin: Callable[..., TrainingRun], capsys: pytest.CaptureFixture
) -> None:
    run = begin(max_train_steps=2)
    train(run, 2)  # the last step logs
    (line,) = (run.output_dir / "metrics.jsonl").read_text().splitlines()
    numbers = json.loads(line)
    assert numbers["step"] == 2 and numbers["eta_s"] == 0
    assert numbers["loss"] == pytest.approx((9 + 4) / 2)  # 1 - (-2), then 1 - (-1): the first step has rate zero
    printed = capsys.readouterr().out
    assert f"step 000002/2 | loss {numbers['loss']:.4f} | lr 5.0e-03 | " in printed
    assert " frames/s | data " in printed and " | eta 0s" in printed


def test_a_loss_that_is_no_number_ends_the_run_with_a_cure(begin: Callable[..., TrainingRun]) -> None:
    run = begin(max_train_steps=1)
    with pytest.raises(BadInput, match="the loss became nan .* lower --learning_rate"):
        with run.accelerator.accumulate(run.model):
            run.update(run.model(torch.full((1, 1), float("nan"))).mean())
        run.finish_step(items=1)
