"""How fast the stages are here: frames drawn, training steps, frames encoded, each beside the plain way.

Networks of a preset's shapes with random weights; no data is needed. The two ways of a row run in turn, so that other
work on the machine meets both; figures are medians of the rounds, the ratio is the median of each round's ratio. Where
the time of a drawn frame goes is listed below the rows. How fast the page is to a person: benchmarks/play_page.py.

    python benchmark.py --preset smoke --rounds 3
    python benchmark.py --preset small --out small.json
    python benchmark.py --preset sd14 --device cuda --out sd14.json
"""

import argparse
import itertools
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import command_line
from presets import PRESETS

PARTS = ("draw", "train", "encode")
LEAST_S = 0.3  # a way runs for at least so long in each round


def build_parser() -> argparse.ArgumentParser:
    arguments = command_line.parser(__doc__)
    add = arguments.add_argument
    add("--preset", choices=sorted(PRESETS), default="small", help="shapes of the networks")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure; default: all")
    add("--rounds", type=command_line.positive, default=7, help="times that both ways of a row run")
    add("--train_batch_size", type=command_line.positive, help="windows in a training step; default: the preset's")
    add("--encode_batch_size", type=command_line.positive, default=32, help="frames encoded at a time, our way")
    add("--out", help="a .json file for the figures")
    command_line.add_device_flag(arguments)
    return arguments


def main(args: argparse.Namespace) -> None:
    from artifacts import check_writable, write_json

    if args.out:
        check_writable("--out", Path(args.out).absolute().parent)
    preset = PRESETS[args.preset]
    args.train_batch_size = args.train_batch_size or preset.train_batch_size
    command_line.print_settings(args)

    import torch

    from backends import device_kind

    device = torch.device(command_line.resolve_device(args.device))
    machine = {
        "device": device_kind(device),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": load_average(),
    }
    for name, value in machine.items():
        print(f"{name}: {value}", flush=True)
    rows, frame_ms = [], {}
    if "draw" in args.parts:
        rows, frame_ms = drawing(preset, device, args.rounds)
    if "train" in args.parts:
        rows += training(preset, device, args.train_batch_size, args.rounds)
    if "encode" in args.parts:
        rows += encoding(preset, device, args.encode_batch_size, args.rounds)
    print(table(rows))
    for way, parts in frame_ms.items():
        told = ", ".join(f"{name} {value:.1f} ms" for name, value in parts.items())
        print(f"of a frame drawn by {way}: {told}")
    machine["load_after"] = load_average()
    if args.out:
        write_json(args.out, {"settings": vars(args), "machine": machine, "rows": rows, "frame_ms": frame_ms})
        print(f"wrote {args.out}")


# ---------------------------------------------------------------------------------------------------- the parts


def drawing(preset, device, rounds: int) -> tuple[list[dict], dict[str, dict[str, float]]]:
    """(rows, {way: {part: ms}}): frames per second of the engine, from an action to a uint8 picture."""
    from engine import GameEngine
    from pictures import encode_jpeg
    from random_models import random_world_model

    names = ["torch"] + {"cuda": ["cuda"], "cpu": ["onnx"]}.get(device.type, [])
    engines = {}
    for name in names:
        loaded = random_world_model(preset)
        loaded.world_model.to(device)
        loaded.autoencoder.to(device)
        engine = GameEngine(loaded, backend=name)
        engine.reset_to_start()
        engines[str(engine.backend)] = engine
    ways = {way: lambda engine=engine: engine.step(0) for way, engine in engines.items()}
    rows = rows_of("frames drawn", "frames/s", paired(ways, rounds))
    passes = preset.num_inference_steps * (1 if preset.guidance_scale == 1.0 else 2)
    frame_ms = {}
    for way, engine in engines.items():
        latents = engine.latents
        network = 1e3 * seconds(lambda engine=engine: engine.step_latents([0]), rounds)
        shown = itertools.cycle((latents[:, -1], latents[:, -2]))  # what was drawn last is at hand
        decoder = 1e3 * seconds(lambda engine=engine, shown=shown: engine.decode_latents(next(shown)), rounds)
        frame = engine.decode_latents(latents[:, -1])[0]
        jpeg = 1e3 * seconds(lambda frame=frame: encode_jpeg(frame), rounds)
        frame_ms[way] = {f"network ({passes} passes) and sampler": network, "decoder": decoder, "then its JPEG": jpeg}
    return rows, frame_ms


def training(preset, device, batch_size: int, rounds: int) -> list[dict]:
    """Windows per second through loss, backward, clipping and optimizer, each way on weights of its own."""
    import torch

    from diffusion import draw, timesteps_to_train, training_loss
    from optimizers import make_optimizer
    from random_models import random_world_model

    def way(precision: torch.dtype, layout: torch.memory_format, is_compiled: bool) -> Callable[[], None]:
        loaded = random_world_model(preset)
        model = loaded.world_model.requires_grad_(True).train().to(device, memory_format=layout)
        parameters = list(model.parameters())
        network = torch.compile(model) if is_compiled else model
        optimizer = make_optimizer(preset.optimizer, parameters, learning_rate=preset.learning_rate, weight_decay=0.0)
        shape = (preset.context_length + 1, *loaded.config.latent_shape)
        noise = {"max_noise_level": preset.max_noise_level, "num_noise_buckets": preset.num_noise_buckets}
        draws = draw(
            *(0, 0, range(batch_size), shape),
            train_timesteps=timesteps_to_train(loaded.scheduler, preset.sampler_steps),
            max_noise_level=preset.max_noise_level,
            context_dropout=preset.context_dropout,
            device=device,
        )
        latents = torch.randn(batch_size, *shape, device=device)
        actions = torch.zeros(batch_size, preset.context_length, dtype=torch.int64, device=device)

        def step() -> None:
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                loss = training_loss(network, loaded.scheduler, latents, actions, draws, **noise)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            synchronize(device)

        return step

    is_compiled = device.type == "cuda"
    ours = "bfloat16, channels last" + (", compiled" if is_compiled else "")
    ways = {
        "float32": way(torch.float32, torch.contiguous_format, False),
        ours: way(torch.bfloat16, torch.channels_last, is_compiled),
    }
    return rows_of(f"trained on, {batch_size} at a time", "windows/s", paired(ways, rounds), batch_size)


def encoding(preset, device, batch_size: int, rounds: int) -> list[dict]:
    """Frames per second from uint8 pictures to moments."""
    import torch

    from random_models import random_world_model

    size = (batch_size, preset.frame_height, preset.frame_width, 3)
    frames = torch.randint(0, 256, size, dtype=torch.uint8)

    def way(precision: torch.dtype, layout: torch.memory_format, frames_at_once: int) -> Callable[[], None]:
        autoencoder = random_world_model(preset).autoencoder.to(device, precision, memory_format=layout)

        @torch.no_grad()
        def encode() -> None:
            for first in range(0, batch_size, frames_at_once):
                pixels = autoencoder.frames_to_pixels(frames[first : first + frames_at_once])
                autoencoder.encode_pixels(pixels)
            synchronize(device)

        return encode

    precision = torch.bfloat16 if device.type == "cuda" else torch.float32
    name = str(precision).removeprefix("torch.")
    ways = {
        "float32, one at a time": way(torch.float32, torch.contiguous_format, 1),
        f"{name}, channels last, {batch_size} at a time": way(precision, torch.channels_last, batch_size),
    }
    return rows_of("frames encoded", "frames/s", paired(ways, rounds), batch_size)


# ---------------------------------------------------------------------------------------------------- the clock


def paired(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Runs all ways in turn, `rounds` times, each first once unmeasured: {way: seconds per call of each round}."""
    calls = {}
    for way, call in ways.items():
        call()  # compiles, fills caches
        calls[way] = math.ceil(LEAST_S / max(timed(call, 1), 1e-6))
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, call in ways.items():
            taken[way].append(timed(call, calls[way]))
    return taken


def timed(call: Callable[[], object], calls: int) -> float:
    """Seconds per call."""
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls


def seconds(call: Callable[[], object], rounds: int) -> float:
    """Median seconds per call."""
    return statistics.median(paired({"": call}, rounds)[""])


def synchronize(device) -> None:
    """Waits for what was given to a GPU."""
    import torch

    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def rows_of(what: str, unit: str, taken: dict[str, list[float]], items: int = 1) -> list[dict]:
    """A row for every way: its rate, and the median ratio to the first, plain one. items: of one call."""
    plain = next(iter(taken.values()))
    return [
        {
            "what": what,
            "way": way,
            "unit": unit,
            "rate": items / statistics.median(times),
            "ratio_to_plain": statistics.median(a / b for a, b in zip(plain, times, strict=True)),
            "seconds": times,
        }
        for way, times in taken.items()
    ]


def table(rows: list[dict]) -> str:
    lines = [("", "way", "rate", "times the plain way")]
    lines += [
        (row["what"], row["way"], f"{row['rate']:.4g} {row['unit']}", f"{row['ratio_to_plain']:.2f}") for row in rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def load_average() -> float | None:
    """How many processes wanted to compute in the last minute; None where the system does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def processor() -> str:
    """The CPU's name as Linux tells it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    command_line.run(main, build_parser())
