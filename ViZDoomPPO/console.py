"""What the command lines of stage 1 share: one-line errors, settings first, device choice.

Knows nothing of games or policies. Imports only the standard library, so `--help` and early errors answer at once.
Used by every script and module of this folder; `command_line.py` is its counterpart for stages 2-6, which stage 1
does not import.
"""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

DEVICES = ("auto", "cuda", "mps", "cpu")


class BadInput(Exception):
    """Input the user can fix: the message is one line that says what failed, which value, and the cure."""


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Names a full disk or an unwritable folder in one line: an OSError inside becomes BadInput."""
    try:
        yield
    except OSError as error:
        where, reason = error.filename or place, error.strerror or error
        cure = "make room or choose another folder, then run the same command again; what is finished is whole"
        raise BadInput(f"cannot write {where} ({reason}); {cure}") from error


def check_writable(folder: Path) -> None:
    """Raises BadInput when `folder`, there already or not, is no place to write to; makes nothing."""
    present = next(path for path in (folder, *folder.parents) if path.exists())
    if not present.is_dir() or not os.access(present, os.W_OK):
        reason = "not a folder" if not present.is_dir() else "not writable"
        raise BadInput(f"cannot write {folder} ({present} is {reason}); choose another folder")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the docstring's line breaks and appends `(default: ...)` to every flag that has one and does not say it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a flag in one line, without the usage above it; exit code 2 as argparse has it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.presets: dict[str, dict[str, object]] = {}

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        words = sys.argv[1:] if args is None else list(args)
        for flag, defaults in self.presets.items():
            if flag in words:
                self.set_defaults(**defaults)
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; see --help\n")


def parser(description: str | None) -> Parser:
    """An argument parser that shows the script's docstring as it stands and every default."""
    return Parser(description=description, formatter_class=HelpFormatter, allow_abbrev=False)


def add_device_flag(arguments: argparse.ArgumentParser) -> None:
    """Adds `--device`, spelled the same in every script."""
    explanation = "where to compute; auto: cuda, mps, cpu in this order"
    arguments.add_argument("--device", choices=DEVICES, default="auto", help=explanation)


def add_preset(arguments: Parser, flag: str, explanation: str, defaults: dict[str, object]) -> None:
    """Adds a switch that changes other flags' defaults, in `--help` too; flags that are given override it."""
    arguments.add_argument(flag, action="store_true", help=explanation)
    arguments.presets[flag] = defaults


@contextmanager
def noted_interrupts() -> Iterator[threading.Event]:
    """Inside, the first SIGINT or SIGTERM sets the event that is given; a second one raises KeyboardInterrupt at once.

    Raised anywhere, KeyboardInterrupt can be swallowed by a callback or leave a library's lock held for ever; whoever
    waits in here looks at the event instead, and raises it where nothing is half done."""
    noted = threading.Event()

    def note(number: int, _frame: object) -> None:
        noted.set()
        signal.signal(number, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def resolve_device(name: str) -> str:
    """`auto|cuda|mps|cpu` -> the torch device string in use. Raises BadInput when the named one is not there."""
    import torch

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device in DEVICES[1:] if present[device])
    if not present[name]:
        raise BadInput(f"--device {name}: torch {torch.__version__} finds no such device; use --device auto or cpu")
    return name


def print_settings(args: argparse.Namespace, **resolved: object) -> None:
    """Prints every setting, one `name: value` per line; `resolved` overrides flags by what they became."""
    for name, value in {**vars(args), **resolved}.items():
        print(f"{name}: {value}", flush=True)


def run(main: Callable[[argparse.Namespace], None], arguments: argparse.ArgumentParser) -> None:
    """Parses the command line and calls `main(args)`; BadInput becomes one line on stderr and exit code 2."""
    args = arguments.parse_args()
    script = Path(sys.argv[0]).name
    try:
        main(args)
    except BadInput as error:
        message = " ".join(str(error).split())
        print(f"{script}: {message}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{script}: interrupted; run the same command again to go on", file=sys.stderr, flush=True)
        sys.exit(130)
