"""How fast play.py is to a person: real-time factor and time from key to picture, everything included.

Makes a world model of a preset's shapes with random weights (or takes one), starts the real play.py, opens its page in
a real headless Chromium, presses keys for a while, and prints what the page measured. Network, decoder, picture
encoding, transport, page and browser share this machine.

    python benchmarks/play_page.py --preset small
    python benchmarks/play_page.py --model_folder runs/small/world_model_run --seconds 120 --out play_page.json
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import command_line  # noqa: E402
from command_line import BadInput  # noqa: E402

ROWS = ("frame_time_ms", "frames_per_second", "real_time_factor", "key_to_picture_ms", "engine_ms")


def build_parser() -> argparse.ArgumentParser:
    arguments = command_line.parser(__doc__)
    add = arguments.add_argument
    add("--preset", default="small", help="shapes of the random world model: sd14, small, smoke or a .json")
    add("--model_folder", help="a world-model folder to play instead")
    add("--seconds", type=command_line.positive, default=60, help="how long to play, after ten seconds of warming up")
    add("--threads", type=command_line.positive, help="threads of the network; default: PyTorch's choice")
    add("--out", help="a .json file for what the page measured")
    command_line.add_device_flag(arguments)
    command_line.add_backend_flag(arguments)
    return arguments


def main(args: argparse.Namespace) -> None:
    from artifacts import write_json
    from presets import get_preset

    preset = get_preset(args.preset)
    chromium = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
    if chromium is None:
        raise BadInput("no chromium on the PATH; apt-get install chromium")
    command_line.print_settings(args, chromium=chromium)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.model_folder or saved_random_model(preset, Path(temporary) / "world_model")
        if Path(folder).exists():  # else a Hub id; the server runs elsewhere
            folder = Path(folder).absolute()
        figures = measure(args, str(folder), chromium, Path(temporary))
    for name in ROWS:
        row = figures[name]
        print(f"{name}: median {row['median']:.2f}, 95th percentile {row['percentile_95']:.2f}, n {row['samples']}")
    if args.out:
        write_json(args.out, figures)
        print(f"wrote {args.out}")


def saved_random_model(preset, folder: Path) -> Path:
    from random_models import random_world_model

    random_world_model(preset).save(folder)
    return folder


def measure(args: argparse.Namespace, folder: str, chromium: str, work: Path) -> dict:
    """Plays with random keys, each held for a third of a second on average; returns the page's own report."""
    import os

    from playwright.sync_api import sync_playwright

    command = [sys.executable, REPOSITORY / "play.py", "--model_folder", folder, "--port", "0", "--no_browser"]
    command += ["--backend", args.backend, "--device", args.device]
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(args.threads)} if args.threads else {})}
    server = subprocess.Popen(command, cwd=work, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        for line in server.stdout:
            print(line, end="", flush=True)
            if line.startswith("play at "):
                break
        with sync_playwright() as runner:
            browser = runner.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.goto(line.split()[2])
            press_keys(page, 10.0)
            page.evaluate("forgetStatistics()")
            press_keys(page, args.seconds)
            figures = page.evaluate("report()")
            browser.close()
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
    return figures


def press_keys(page, seconds: float) -> None:
    draw, end = random.Random(0), time.monotonic() + seconds
    while time.monotonic() < end:
        key = draw.choice(("w", "a", "s", "d", "ArrowLeft", "ArrowRight", " "))
        page.keyboard.down(key)
        page.wait_for_timeout(draw.uniform(100, 600))
        page.keyboard.up(key)
        page.wait_for_timeout(draw.uniform(50, 400))


if __name__ == "__main__":
    command_line.run(main, build_parser())
