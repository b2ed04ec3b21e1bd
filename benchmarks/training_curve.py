"""Draws a training run's learning from its metrics.jsonl: the loss, and held-out figures where it was validated.

    python benchmarks/training_curve.py runs/world_model/metrics.jsonl world_model.png
    python benchmarks/training_curve.py benchmarks/small/world_model.jsonl benchmarks/small/world_model.png

A dot of the loss is the mean over --bin_steps steps.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

from curves import draw

HELD_OUT = {
    "ceiling_psnr_db": "held-out frames encoded and decoded, PSNR in dB",
    "ceiling_detail": "their detail; 1 is the real game's",
    "model_psnr_db": "one step ahead on held-out play, PSNR in dB",
    "model_detail": "its detail; 1 is the real game's",
    "view_psnr_db": "held-out views from the recorded pose, PSNR in dB",
    "way_units": "eight frames ahead, how far off the camera, map units",
    "moved_db": "last held-out frame moved ahead, PSNR to the next one in dB",
    "played_db": "and drawn over",
    "flow_error_pixels": "how far its flow is off, in pixels",
}


def rows_of(lines: list[dict[str, float]], bin_steps: int) -> list[dict[str, float]]:
    """The lines with held-out figures, and the losses as means per bin of steps; oldest first."""
    bins: dict[int, list[float]] = defaultdict(list)
    for line in lines:
        if "loss" in line:
            bins[int(line["step"]) // bin_steps].append(line["loss"])
    losses = [{"step": (n + 0.5) * bin_steps, "loss": sum(part) / len(part)} for n, part in bins.items()]
    measured = [line for line in lines if line.keys() & HELD_OUT.keys()]
    held_out = [{name: line[name] for name in ("step", *HELD_OUT) if name in line} for line in measured]
    return sorted(losses + held_out, key=lambda row: row["step"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("metrics", type=Path, help="metrics.jsonl of the run")
    parser.add_argument("picture", type=Path, help="PNG to write")
    parser.add_argument("--bin_steps", type=int, default=250, help="steps per dot of the loss; default 250")
    args = parser.parse_args()
    rows = rows_of([json.loads(line) for line in args.metrics.read_text().splitlines()], args.bin_steps)
    if not rows:
        parser.error(f"no loss and no held-out figures in {args.metrics}")
    titles = {"loss": f"loss, means of {args.bin_steps} steps"}
    has_model = any("model_psnr_db" in row for row in rows)  # then the ceiling is a horizontal line
    titles |= {name: title for name, title in HELD_OUT.items() if not (has_model and name.startswith("ceiling"))}
    titles = {name: title for name, title in titles.items() if any(name in row for row in rows)}
    draw(rows, titles, caption=f"to step {max(row['step'] for row in rows):.0f}", from_zero=False).save(args.picture)
    print(f"wrote {args.picture}")


if __name__ == "__main__":
    main()
