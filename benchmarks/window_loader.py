"""Windows per second of data_loader.py against the seed's way, which loads a whole file for one window.

Writes latent files of random numbers to a temporary folder, then times both ways in turn, warm cache, one process.

    python benchmarks/window_loader.py --preset small
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import command_line
from presets import PRESETS

FILES, ROWS, ROUNDS, WHOLE_FILE_WINDOWS, MAPPED_BATCHES = 8, 2600, 5, 8, 40


def main(args) -> None:
    import torch
    from torch.utils.data import DataLoader

    from data_loader import WindowDataset
    from latents import save_latents
    from window_sampler import WindowSampler

    preset = PRESETS[args.preset]
    shape = (preset.latent_channels, preset.latent_height, preset.latent_width)
    length, stride = preset.context_length, preset.frame_stride
    facts = {"tics_per_row": stride, "tics_per_second": 35.0, "encoder_sha256": "0", "posterior": "none"}
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"latent_episode_{number:06d}.pt" for number in range(FILES)]
        columns = {"actions": torch.zeros(ROWS, dtype=torch.int64), "held": torch.ones(ROWS, dtype=torch.bool)}
        for path in paths:
            moments = torch.randn(ROWS, *shape).half()
            save_latents(path, moments, facts, **columns, tics=torch.arange(ROWS) * stride)
        dataset = WindowDataset(paths, context_length=length, frame_stride=stride, black_moments=torch.zeros(1, *shape))
        sampler = WindowSampler(len(dataset), seed=0, batch_size=args.batch_size)
        batches = iter(DataLoader(dataset, batch_sampler=sampler))
        next(batches)
        mapped, whole = [], []
        for number in range(ROUNDS):
            began = time.perf_counter()
            for _ in range(MAPPED_BATCHES):
                next(batches)
            mapped.append(MAPPED_BATCHES * args.batch_size / (time.perf_counter() - began))
            began = time.perf_counter()
            for window in range(WHOLE_FILE_WINDOWS):
                path = paths[(number + window) % FILES]
                torch.load(path, weights_only=True)["parameters"][window : window + length + 1].clone()
            whole.append(WHOLE_FILE_WINDOWS / (time.perf_counter() - began))
    ratio = statistics.median(a / b for a, b in zip(mapped, whole, strict=True))
    print(
        f"{args.preset}, L = {length}, {FILES} files of {ROWS} rows: {statistics.median(mapped):.0f} windows/s mapped, "
        f"{statistics.median(whole):.0f} with whole files, ratio {ratio:.0f} (medians of {ROUNDS})"
    )


if __name__ == "__main__":
    arguments = command_line.parser(__doc__)
    arguments.add_argument("--preset", choices=sorted(PRESETS), default="small", help="size of latents and windows")
    arguments.add_argument("--batch_size", type=command_line.positive, default=64, help="windows per batch")
    command_line.run(main, arguments)
