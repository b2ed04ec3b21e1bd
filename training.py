"""What the trainers share: the run folder, checkpoints and exact resume, the progress line, the clock.

Does not know what is trained. Used by every trainer. A run folder holds `run.json` (what may not change on resume),
`checkpoint-<step>/` (safetensors and JSON, no pickle), `metrics.jsonl`, TensorBoard events and the finished model. To
resume, run the same command again: data order and draws depend on (seed, step) alone.
"""

import argparse
import importlib.util
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import processes
from artifacts import read_json, remove_leftovers, replacing_folder, write_json
from command_line import LR_SCHEDULERS, BadInput, resolve_device
from optimizers import make_optimizer, pack_state, unpack_state
from run_folder import (
    TENSOR_FILES,
    check_identity,
    choose_checkpoint,
    damaged_after,
    first_broken,
    forget_after,
    list_checkpoints,
    save_tensors,
)
from window_sampler import WindowSampler

LOG_EVERY_SECONDS = 10.0
GIVE_BACK_S = 0.5  # see TrainingRun.close


def make_accelerator(args: argparse.Namespace) -> Accelerator:
    """The accelerate front end for `--device --mixed_precision --gradient_accumulation_steps --report_to`.

    Also sets what holds for the whole process: `--allow_tf32`.
    """
    device = resolve_device(args.device)
    if args.report_to == "wandb" and importlib.util.find_spec("wandb") is None:
        raise BadInput(
            "--report_to wandb: the package wandb is not installed; pip install wandb, or use tensorboard or none"
        )
    if device == "cpu" and args.mixed_precision == "fp16":
        raise BadInput("--mixed_precision fp16: PyTorch has none on the CPU; use bf16 or no")
    if device == "cpu" and args.torch_compile and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise BadInput("--torch_compile: needs a C++ compiler on the CPU; apt-get install g++, or leave it out")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.allow_tf32
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=None if args.report_to == "none" else args.report_to,
        project_dir=args.output_dir,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=processes.WAIT)],
    )
    accelerator.print(f"device: {accelerator.device}")
    return accelerator


class TrainingRun:
    """One training in its folder: optimizer, learning rate, EMA, checkpoints, numbers and their progress bar."""

    def __init__(
        self,
        args: argparse.Namespace,
        accelerator: Accelerator,
        model: nn.Module,
        identity: dict,
        *,
        learning_rate: float,
        unit: str,
        optimizer: str = "adamw",
    ) -> None:
        """model: trained where its parameters require gradients. unit: what the rate counts, e.g. `frames`.

        optimizer: `adamw` or `adafactor`."""
        self.args, self.accelerator, self.unit = args, accelerator, unit
        self.output_dir = Path(args.output_dir)
        if accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.output_dir)
            remove_leftovers(self.output_dir / "samples")
        self.names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        model.to(accelerator.device)
        if uses_channels_last(args, accelerator.device):
            model.to(memory_format=torch.channels_last)
        made = make_optimizer(optimizer, self.parameters, learning_rate=learning_rate, weight_decay=args.weight_decay)
        # Not prepared by accelerate: a prepared schedule would move once per process and step.
        self.schedule = get_scheduler(
            args.lr_scheduler or LR_SCHEDULERS[0],
            made,
            num_warmup_steps=args.lr_warmup_steps,
            num_training_steps=args.max_train_steps,
        )
        self.ema = EMAModel(self.parameters, decay=args.ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
        self.ema.to("cpu" if args.ema_on_cpu else accelerator.device)
        self._network = model
        self.model, self.optimizer = accelerator.prepare(model, made)
        if args.torch_compile:  # around the network as it is: names of weights and validation know nothing of it
            self.model = torch.compile(self.model)
        self.step = 0
        self.seconds_before = 0.0
        self.items: int | None = None  # size of the data set, known from the checkpoint or once batches are drawn
        self.identity = identity
        checkpoint = self._choose_checkpoint()
        if checkpoint is not None:
            check_identity(self.output_dir, identity)
            self._load(checkpoint)
            accelerator.print(f"resumed from {checkpoint}")
        if accelerator.is_main_process:
            forget_after(self.output_dir, self.step)
        self.first_step = self.step
        self.bar: tqdm | None = None
        self.started = self.logged = time.monotonic()
        self.steps_logged = self.step
        self.data_seconds = 0.0
        self.step_loss = torch.zeros((), device=accelerator.device)  # of this process
        self.loss_sum = torch.zeros((), device=accelerator.device)  # of all, since the last log line

    def was_finished(self, model_folder: str) -> bool:
        """Whether an earlier session already reached the end and wrote its model; says so."""
        is_finished = self.step > 0 and self.is_over() and (self.output_dir / model_folder).is_dir()
        if is_finished:
            self.write(
                f"{self.output_dir / model_folder} is finished: {self.step} steps, "
                f"{self.trained_seconds / 60:.1f} minutes; raise --max_train_steps or --max_train_minutes to go on"
            )
            self.close()
        return is_finished

    def batches(self, dataset: Dataset, batch_size: int, event_share: float = 0.0) -> Iterator:
        """This process's micro-batches from the current step on, without end; the order follows from seed and step.

        event_share: of them from the data set's `event_windows`; none where it knows of none, which is said."""
        events = dataset.event_windows() if event_share > 0 else None
        if events is not None and len(events):
            self.write(f"{len(events)} of {len(dataset)} windows show an event: {event_share:.0%} of what is drawn")
        elif events is not None:
            events = None
            self.write(f"no events are known of these {len(dataset)} windows, so all are drawn alike")
        if self.items not in (None, len(dataset)):
            self.write(
                f"the data set has {len(dataset)} items, {self.items} before: from here on another order of them"
            )
        self.items = len(dataset)
        return self._drawn(dataset, batch_size, events, event_share)

    def _drawn(self, dataset: Dataset, batch_size: int, events: np.ndarray | None, event_share: float) -> Iterator:
        sampler = WindowSampler(
            len(dataset),
            seed=self.args.seed,
            batch_size=batch_size,
            accumulation=self.args.gradient_accumulation_steps,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            start_step=self.step,
            favoured=events,
            favoured_share=event_share,
        )
        workers = self.args.dataloader_num_workers
        is_pinned = self.accelerator.device.type == "cuda"
        try:
            yield from DataLoader(dataset, batch_sampler=sampler, num_workers=workers, pin_memory=is_pinned)
        except BadInput as error:  # out of a worker it comes with its traceback as text
            raise BadInput(str(error).rpartition("BadInput: ")[2].strip()) from None

    def _choose_checkpoint(self) -> Path | None:
        """What the first process finds, once it has tidied up, for all."""
        found = None
        if self.accelerator.is_main_process:
            found = choose_checkpoint(self.output_dir, self.args.resume_from_checkpoint)
        if found is not None and self.args.resume_from_checkpoint == "latest":
            for damaged in damaged_after(self.output_dir, found):
                self.write(f"{damaged}: going on from {found.name}, the newest that is whole")
        found = self._agreed(found)
        if found is not None and not found.is_dir():
            raise BadInput(f"{found} is not on this machine; --output_dir must be a folder that all machines share")
        return found

    def _agreed(self, value: Any) -> Any:
        """The first process's value, on every process."""
        return broadcast_object_list([value])[0] if self.accelerator.num_processes > 1 else value

    def first_index(self, micro: int, batch_size: int) -> int:
        """Where this process's part of a micro-batch begins in the global batch, as `WindowSampler` counts."""
        return (micro * self.accelerator.num_processes + self.accelerator.process_index) * batch_size

    # ------------------------------------------------------------------ the clock

    @property
    def trained_seconds(self) -> float:
        """Wall-clock seconds of all sessions of this run, housekeeping included."""
        return self.seconds_before + time.monotonic() - self.started

    def begin(self) -> None:
        """Starts the clock and the bar; call right before the loop."""
        self.started = self.logged = time.monotonic()
        if self.args.report_to != "none":
            forgotten = {"tensorboard": {"purge_step": self.step + 1}}  # as in metrics.jsonl
            self.accelerator.init_trackers("neural_game_engine", init_kwargs=forgotten)
        minutes = self.args.max_train_minutes
        if minutes is None:
            bar = {"total": self.args.max_train_steps, "initial": self.step, "unit": "step"}
        else:  # the bar, and so its time left, counts the seconds of the run
            bar = {"total": 60 * minutes, "initial": self.seconds_before}
            bar["bar_format"] = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
        often_s = 1 if sys.stderr.isatty() else 30  # a log file is not flooded
        self.bar = tqdm(**bar, mininterval=often_s, disable=not self.accelerator.is_main_process)

    def is_over(self) -> bool:
        """Whether `--max_train_steps` or `--max_train_minutes` is reached; every process gets the same answer."""
        minutes = self.args.max_train_minutes
        over = self.step >= self.args.max_train_steps or (minutes is not None and self.trained_seconds >= 60 * minutes)
        return over if minutes is None else self._agreed(over)

    def eta_seconds(self) -> float:
        """Seconds left at this session's mean speed, by steps or by minutes, whichever ends first."""
        done = self.step - self.first_step
        per_step = (time.monotonic() - self.started) / done if done else float("inf")
        minutes = self.args.max_train_minutes
        by_time = float("inf") if minutes is None else 60 * minutes - self.trained_seconds
        return max(0.0, min((self.args.max_train_steps - self.step) * per_step, by_time))

    @contextmanager
    def housekeeping(self) -> Iterator[None]:
        """Around validation and saving: their time counts for the run's end, but not for the rate of training."""
        began = time.monotonic()
        yield
        self.logged += time.monotonic() - began

    def is_due(self, every: int) -> bool:
        """Whether housekeeping done every so many steps falls on this one; never on the step a session starts at."""
        return self.step > self.first_step and self.step % every == 0

    def train(self, train_step: Callable[[], None], validation: Any, *, measures_first: bool = False) -> None:
        """From where the run is to its end: `train_step` by `train_step`, measured and saved whenever that is due.

        validation: called with is_last, and saves the model with `save_model`.  measures_first: before the first step
        too, what there is to improve on."""
        self.begin()
        while True:
            is_over = self.is_over()
            with self.housekeeping():
                is_untouched = measures_first and self.step == 0
                if is_over or is_untouched or self.is_due(self.args.validation_steps):
                    validation(is_last=is_over)  # before the checkpoint, whose numbers are then all there
                if is_over or self.is_due(self.args.checkpointing_steps):
                    self.save(validation.save_model)
            if is_over:
                break
            train_step()
        self.close()

    # ------------------------------------------------------------------ one step

    def arrived(self, batches: Iterator[Any]) -> Any:
        """The next of some batches, a tensor or tensors by name, on the device; the wait for it counts as data's."""
        waited = time.monotonic()
        batch = next(batches)
        if isinstance(batch, dict):
            batch = {name: value.to(self.accelerator.device, non_blocking=True) for name, value in batch.items()}
        else:
            batch = batch.to(self.accelerator.device, non_blocking=True)
        self.data_seconds += time.monotonic() - waited
        return batch

    def update(self, loss: Tensor) -> None:
        """Backward, clip at 1.0, optimizer step; under `accelerator.accumulate` only the last micro-step moves them."""
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients:
            self.accelerator.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step_loss += loss.detach() / self.args.gradient_accumulation_steps

    def finish_step(self, items: int) -> None:
        """Moves learning rate, EMA and counters by one step of `items` training items, and logs now and then.

        Always at a checkpoint: what comes after it is forgotten when the run goes on from there."""
        self.schedule.step()
        self._average()
        self.step += 1
        # Every step: when to log is for the first process alone to say, and it needs no other to do so.
        self.loss_sum += self.accelerator.reduce(self.step_loss, "mean")
        self.step_loss.zero_()
        if self.bar is not None and self.args.max_train_minutes is None:
            self.bar.update()
        elif self.bar is not None:
            self.bar.set_postfix_str(f"step {self.step}", refresh=False)
            self.bar.update(min(self.trained_seconds, self.bar.total) - self.bar.n)
        now = time.monotonic()
        is_last = self.step == self.args.max_train_steps
        if now - self.logged >= LOG_EVERY_SECONDS or is_last or self.is_due(self.args.checkpointing_steps):
            steps, seconds = self.step - self.steps_logged, now - self.logged
            loss = self._finite_loss() / steps
            self.log(
                loss=loss,
                lr=self.schedule.get_last_lr()[0],
                **{f"{self.unit}_per_s": items * steps / seconds},
                data_share=self.data_seconds / seconds,
                eta_s=self.eta_seconds(),
            )
            self.loss_sum.zero_()
            self.logged, self.steps_logged, self.data_seconds = now, self.step, 0.0

    def _average(self) -> None:
        parameters = self.parameters
        if self.args.ema_on_cpu and self.accelerator.device.type != "cpu":  # copies that wait for the step to be done
            parameters = [parameter.detach().to("cpu").requires_grad_() for parameter in parameters]
        self.ema.step(parameters)

    def _finite_loss(self) -> float:
        """The loss summed since the last log line, the mean over processes. Raises BadInput where it is no number."""
        loss = float(self.loss_sum)
        if not math.isfinite(loss):
            raise self._blown_up(f"the loss became {loss} before step {self.step}")
        return loss

    def _blown_up(self, what: str) -> BadInput:
        checkpoints = list_checkpoints(self.output_dir)
        where = f"the same command goes on from {checkpoints[-1].name}" if checkpoints else "begin again"
        if self.bar is not None:
            self.bar.close()  # it would else come after the last line
        return BadInput(f"{what}; nothing of it was saved: {where}, with a lower --learning_rate")

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has the averaged weights and computes in float32: what is measured, saved and played."""
        in_low_precision = self._network.__dict__.pop("forward", None)  # by which accelerate wrapped the class's own
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        if self.args.save_dtype == "float16":
            with torch.no_grad():
                for parameter in self.parameters:
                    parameter.copy_(parameter.half())
        try:
            yield
        finally:
            self.ema.restore(self.parameters)
            if in_low_precision is not None:
                self._network.forward = in_low_precision

    # ------------------------------------------------------------------ numbers

    def log(self, **numbers: float) -> None:
        """One line on the console, the same numbers in `metrics.jsonl` and in the tracker."""
        if not self.accelerator.is_main_process:
            return
        self.accelerator.log(numbers, step=self.step)
        with (self.output_dir / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, **{k: round(v, 6) for k, v in numbers.items()}}) + "\n")
        if "loss" in numbers:
            rate = numbers[f"{self.unit}_per_s"]
            self.write(
                f"step {self.step:06d}/{self.args.max_train_steps} | loss {numbers['loss']:.4f} | "
                f"lr {numbers['lr']:.1e} | {rate:.0f} {self.unit}/s | "
                f"data {numbers['data_share']:.0%} | eta {duration(numbers['eta_s'])}"
            )

    def write(self, text: str) -> None:
        """Prints on the main process without breaking the bar."""
        if self.accelerator.is_main_process:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    # ------------------------------------------------------------------ checkpoints

    def save(self, save_model: Callable[[], None] | None = None) -> None:
        """Writes `checkpoint-<step>/` atomically, then removes all but the newest `--checkpoints_total_limit`.

        `save_model` is called before: where a checkpoint is, the model is too. Raises BadInput on every process, and
        writes nothing, when the loss or a weight is not a finite number.
        """
        self._finite_loss()
        broken = first_broken(dict(zip(self.names, self.parameters, strict=True)))
        if broken is not None:
            raise self._blown_up(f"the weights {broken} are not finite numbers after step {self.step}")
        if save_model is not None:
            save_model()
        if not self.accelerator.is_main_process:
            return
        moments, numbers = pack_state(self.optimizer)
        with replacing_folder(self.output_dir / f"checkpoint-{self.step}") as folder:
            model = dict(zip(self.names, self.parameters, strict=True))
            ema = dict(zip(self.names, self.ema.shadow_params, strict=True))
            for name, tensors in zip(TENSOR_FILES, (model, ema, moments), strict=True):
                save_tensors(tensors, folder / name)
            state = {
                "step": self.step,
                "trained_seconds": self.trained_seconds,
                "items": self.items,
                "ema_steps": self.ema.optimization_step,
                "optimizer_groups": self.optimizer.state_dict()["param_groups"],
                "optimizer_numbers": numbers,
                "loss_scale": self.accelerator.scaler.state_dict() if self.accelerator.scaler else {},
            }
            write_json(folder / "state.json", state)
            write_json(self.output_dir / "run.json", self.identity)
        for old in list_checkpoints(self.output_dir)[: -self.args.checkpoints_total_limit]:
            shutil.rmtree(old)

    def _load(self, checkpoint: Path) -> None:
        state = read_json(checkpoint / "state.json")
        another = "name an older one with --resume_from_checkpoint"
        try:
            model, ema, moments = (load_file(checkpoint / name) for name in TENSOR_FILES)
            with torch.no_grad():
                for name, parameter, shadow in zip(self.names, self.parameters, self.ema.shadow_params, strict=True):
                    parameter.copy_(model[name])
                    shadow.copy_(ema[name])
            unpack_state(self.optimizer, moments, state.get("optimizer_numbers", {}), state["optimizer_groups"])
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise BadInput(f"{checkpoint} does not load ({reason}); {another}") from None
        broken = first_broken(model) or first_broken(ema)
        if broken is not None:
            raise BadInput(f"{checkpoint}: its weights {broken} are not finite numbers; {another}")
        self.ema.optimization_step = state["ema_steps"]
        self.step, self.seconds_before, self.items = state["step"], state["trained_seconds"], state["items"]
        self.schedule.last_epoch = self.step
        if self.accelerator.scaler and state["loss_scale"]:
            self.accelerator.scaler.load_state_dict(state["loss_scale"])
        # What the flags say counts, from this step on; with the same flags these are the numbers just loaded.
        for group, base, factor in zip(
            self.optimizer.param_groups, self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True
        ):
            group.update(lr=base * factor(self.step), weight_decay=self.args.weight_decay)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        if self.accelerator.num_processes > 1:
            # gloo's thread still has to give back the tensors of the last exchange, for which it needs the interpreter;
            # the destructor of the process group would hold that while it waits for the thread, and both for ever.
            time.sleep(GIVE_BACK_S)


def uses_channels_last(args: argparse.Namespace, device: torch.device) -> bool:
    """What `--channels_last` means here; auto picks where convolutions were found faster with it."""
    if args.channels_last == "auto":
        return device.type == "cuda" or (device.type == "cpu" and args.mixed_precision == "bf16")
    return args.channels_last == "yes"


def duration(seconds: float) -> str:
    """Seconds for people: `41h`, `12min`, `?` for no end in sight."""
    if seconds == float("inf"):
        return "?"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"
