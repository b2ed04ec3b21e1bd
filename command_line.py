"""What every command line of the root shares: one-line errors, settings first, device choice.

Knows nothing of models or data. Imports only the standard library, so `--help` and early errors answer at once.
Used by every root script; `ViZDoomPPO/console.py` is its counterpart, since stage 1 imports nothing from the root.
"""

import argparse
import errno
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import processes

DEVICES = ("auto", "cuda", "mps", "cpu")
BACKENDS = {"auto": None, "torch": None, "onnx": "cpu", "cuda": "cuda"}  # and the one device that each draws on
LR_SCHEDULERS = ("constant_with_warmup", "constant", "linear", "cosine")


class BadInput(Exception):
    """Input the user can fix: the message is one line that says what failed, which value, and the cure."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the docstring's line breaks and appends `(default: ...)` to every flag that has one and does not say it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a flag in one line, without the usage above it; exit code 2 as argparse has it."""

    def error(self, message: str) -> NoReturn:
        sys.exit(_fail(f"{self.prog}: {' '.join(message.split())}; see --help", 2))


def parser(description: str | None) -> argparse.ArgumentParser:
    """An argument parser that shows the script's docstring as it stands and every default."""
    return Parser(description=description, formatter_class=HelpFormatter, allow_abbrev=False)


def add_latent_flags(arguments: argparse.ArgumentParser) -> None:
    """For trainers on latents: their autoencoder and the stride; see latent_data.py."""
    add = arguments.add_argument
    add("--vae_folder_or_id", help="autoencoder folder or Hub id; default: the one kept beside the latents")
    add("--preset", help="sd14, small, smoke or a .json file; default: what the autoencoder folder says")
    add("--frame_stride", type=positive, help="tics between two frames; default: the preset's")


def add_event_flag(arguments: argparse.ArgumentParser) -> None:
    """--event_share of the trainers that learn from windows."""
    arguments.add_argument(
        "--event_share",
        type=fraction,
        default=0.0,
        help="share of windows drawn from those that lead to an event (a shot, damage, a pick-up, another weapon, "
        "a death: a change of what the game counts), which are rare",
    )


def add_own_frames_flags(arguments: argparse.ArgumentParser) -> None:
    """--own_frames and --own_frames_share of the trainers whose model plays on from what it drew."""
    arguments.add_argument(
        "--own_frames",
        type=not_negative,
        default=0,
        metavar="K",
        help="let the model draw the last 1 to K past frames of --own_frames_share of all steps itself, few more often "
        "than many, against drift; for the end of a training",
    )
    arguments.add_argument("--own_frames_share", type=fraction, default=0.5, help="see --own_frames")


def add_device_flag(arguments: argparse.ArgumentParser) -> None:
    """Adds `--device`, spelled the same in every script."""
    arguments.add_argument(
        "--device", choices=DEVICES, default="auto", help="where to compute; auto: cuda, mps, cpu in this order"
    )


def add_backend_flag(arguments: argparse.ArgumentParser) -> None:
    """Adds `--backend` to a script that draws and has `--device`; `check_backend` and `device_of_backend` read it."""
    arguments.add_argument(
        "--backend",
        choices=tuple(BACKENDS),
        default="auto",
        help="what draws; auto: cuda (bfloat16, compiled) on NVIDIA, onnx (ONNX Runtime) on the CPU, else torch",
    )


def check_backend(args: argparse.Namespace) -> None:
    """Raises BadInput, without torch, for a --backend that is not installed or contradicts --device."""
    needed = BACKENDS[args.backend]
    if needed is not None and args.device not in ("auto", needed):
        raise BadInput(f"--backend {args.backend} draws on --device {needed}, not {args.device}; change one of them")
    if args.backend == "onnx" and importlib.util.find_spec("onnxruntime") is None:
        raise BadInput("--backend onnx: no onnxruntime installed; pip install -r diffusion_requirements.txt")


def device_of_backend(args: argparse.Namespace) -> str:
    """The torch device that --backend and --device ask for. Raises BadInput when it is not there."""
    try:
        return resolve_device(BACKENDS[args.backend] or args.device)
    except BadInput:
        if args.device != "auto":
            raise
        raise BadInput(
            f"--backend {args.backend}: torch finds no {BACKENDS[args.backend]} device here; use --backend auto"
        ) from None


def add_training_flags(arguments: argparse.ArgumentParser) -> None:
    """The flags that every trainer has; training.py reads them."""
    add = arguments.add_argument
    add("--gradient_accumulation_steps", type=positive, default=1, help="micro-batches per optimizer step")
    add(
        "--mixed_precision",
        choices=("no", "fp16", "bf16"),
        default="no",
        help="autocast precision; weights stay float32",
    )
    add(
        "--channels_last",
        choices=("auto", "yes", "no"),
        default="auto",
        help="memory format of convolutions; auto: yes on CUDA, and with --mixed_precision bf16 on the CPU",
    )
    add("--allow_tf32", action="store_true", help="on CUDA, TensorFloat-32 for what is computed in float32")
    add("--torch_compile", action="store_true", help="compile the network: a slow first step, faster ones after it")
    add("--ema_on_cpu", action="store_true", help="keep the moving average in main memory, not on the GPU")
    add("--max_train_steps", type=positive, default=700_000, help="optimizer steps to end at; GameNGen's number")
    add(
        "--max_train_minutes",
        type=positive_float,
        help="minutes to end at, all sessions of this run added up; default: no limit",
    )
    add(
        "--lr_scheduler",
        choices=LR_SCHEDULERS,
        help="shape of the learning rate; linear and cosine end at --max_train_steps; default: constant_with_warmup, "
        "or what goes with the optimizer",
    )
    add("--lr_warmup_steps", type=not_negative, default=100, help="steps from rate zero to --learning_rate")
    add("--weight_decay", type=fraction, default=0.0, help="decoupled weight decay")
    add(
        "--ema_decay",
        type=fraction,
        default=0.9999,
        help="largest decay of the weights' moving average, which is what gets saved",
    )
    add(
        "--save_dtype",
        choices=("float32", "float16"),
        default="float32",
        help="precision of the finished model's weights; float16 halves its files and is what validation then measures",
    )
    add("--validation_steps", type=positive, default=1000, help="steps between two validations on held-out episodes")
    add("--checkpointing_steps", type=positive, default=1000, help="steps between two checkpoints")
    add("--checkpoints_total_limit", type=positive, default=2, help="checkpoints kept, the newest")
    add(
        "--resume_from_checkpoint",
        default="latest",
        metavar="{latest,none,NAME}",
        help="latest (a new run where there is none), none (refuses to train over a run), or a checkpoint",
    )
    add(
        "--report_to",
        choices=("tensorboard", "wandb", "none"),
        default="tensorboard",
        help="tracker besides metrics.jsonl",
    )
    add(
        "--dataloader_num_workers",
        type=not_negative,
        default=2,
        help="processes that read windows; 0 reads in the trainer",
    )
    add("--seed", type=not_negative, default=0, help="seed of weights, order and every draw")


def positive(text: str) -> int:
    """An argparse type: a whole number above zero."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above zero")
    return number


def not_negative(text: str) -> int:
    """An argparse type: a whole number, zero or above."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is below zero")
    return number


def positive_float(text: str) -> float:
    """An argparse type: a number above zero."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above zero")
    return number


def fraction(text: str) -> float:
    """An argparse type: a number from 0 up to, not including, 1."""
    number = float(text)
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def resolve_device(name: str) -> str:
    """`auto|cuda|mps|cpu` -> the torch device string in use. Raises BadInput when the named one is not there."""
    import torch

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        is_cpu = processes.is_cpu_asked_for()
        return next(device for device in DEVICES[1:] if present[device] and (device == "cpu" or not is_cpu))
    if not present[name]:
        raise BadInput(
            f"--device {name}: torch {torch.__version__} finds no such device here; use --device auto or cpu"
        )
    return name


def print_settings(args: argparse.Namespace, **resolved: object) -> None:
    """Prints every setting, one `name: value` per line; `resolved` overrides flags by what they became.

    Of several processes that share the command only the first one prints."""
    if processes.rank() > 0:
        return
    for name, value in {**vars(args), **resolved}.items():
        print(f"{name}: {value}", flush=True)


def run(
    main: Callable[[argparse.Namespace], None], arguments: argparse.ArgumentParser, *, is_shared: bool = False
) -> None:
    """Parses the command line and calls `main(args)`; BadInput and a failing disk become one line and exit code 2.

    One line for all processes that share the command, too: see processes.py. is_shared: whether `main` splits its work
    among them."""
    name = Path(sys.argv[0]).name
    try:
        args = arguments.parse_args()
        if is_shared and (missing := processes.missing()) > 1:
            sys.exit(processes.start(missing))
        main(args)
    except (BadInput, processes.CannotStart) as error:
        sys.exit(_fail(f"{name}: {' '.join(str(error).split())}", 2))
    except OSError as error:
        sys.exit(_fail(f"{name}: {_what_failed(error)}", 2, error))
    except KeyboardInterrupt:
        sys.exit(_fail(f"{name}: interrupted; run the same command again to go on", 130))
    except Exception as error:  # a fault of ours: shown whole, but once
        if processes.has_lost_others(error):
            what = "the processes it works with are gone; their last line says why, the same command goes on"
            sys.exit(_fail(f"{name}: {what}", 1, error))
        processes.wait_for_the_spokesman(error)
        raise


def _fail(line: str, code: int, error: Exception | None = None) -> int:
    processes.wait_for_the_spokesman(error)
    print(line, file=sys.stderr, flush=True)
    return code


def _what_failed(error: OSError) -> str:
    """An OSError as `where: what; cure`."""
    text = " ".join((error.strerror or str(error).strip().rpartition("\n")[2] or type(error).__name__).split())
    again = "run the same command again, it goes on from what is whole"
    cures = {
        errno.ENOSPC: f"free some space, then {again}",
        errno.EDQUOT: f"free some space, then {again}",
        errno.EFBIG: f"a file may not grow that large here; raise the limit, then {again}",
        errno.EROFS: "name another folder",
        errno.EACCES: "change the permission, or name another folder",
        errno.EPERM: "change the permission, or name another folder",
    }
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{text}; {cures.get(error.errno, f'see to it, then {again}')}"
