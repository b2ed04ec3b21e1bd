"""What a finished world model is measured by on held-out play: ceiling, one step, rollouts of any length.

Memory does not grow with the model's frames: long rollouts are drawn and measured a few frames at a time. Knows no
files and no command line; used by evaluate.py.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from data_loader import WindowDataset, evenly
from engine import GameEngine
from frechet import play_distances, play_features
from metrics import gap_closed, horizontal_gradient, measure_rows, psnr
from validation import picture_rows, read_stretches, roll_out, take_up

BATCH = 16
CHUNK = 32  # frames of a rollout that are in memory at a time
STATUS_BAR = 0.84  # of the picture's height is above Doom's status bar
SHORTER = 0.8  # where no recording is as long as a rollout, so much of it is tried, and so on
VECTORS_PER_DIMENSION = 2  # vectors for each dimension, below which a Fréchet distance is mostly chance

Rows = dict[str, dict[str, float]]
Progress = Callable[[int], object]


def ceiling(engine: GameEngine, dataset: WindowDataset, num_frames: int, progress: Progress) -> Rows:
    """The autoencoder alone on real frames: rows `whole` and `status_bar`, the lowest sixth, with PSNR and detail."""
    indices = evenly(len(dataset), num_frames)
    real, shown = [], []
    for index in indices:
        item = dataset.stretch(index, 1)
        frames = dataset.source_frames(item["episode"], item["rows"][-1:])
        real.append(engine.autoencoder.resize_frames(frames).cpu().numpy())
        shown.append(engine.autoencoder.reconstruct(frames))
        progress(1)
    real, shown = np.concatenate(real), np.concatenate(shown)
    top = round(STATUS_BAR * real.shape[1])
    return {
        "whole": measure_rows(real, {"row": shown})["row"],
        "status_bar": measure_rows(real[:, top:], {"row": shown[:, top:]})["row"],
    }


def one_step(
    engines: dict[int, GameEngine],
    dataset: WindowDataset,
    indices: Sequence[int],
    constant: np.ndarray,
    seed: int,
    progress: Progress,
) -> dict[str, dict]:
    """{sampling steps: {"rows": DESIGN's four, "gap_closed": share or None}}, one step ahead of recorded history.

    engines: the same model, by its number of sampling steps."""
    reals: list[np.ndarray] = []
    pictures: dict[int, list[dict[str, np.ndarray]]] = {steps: [] for steps in engines}
    for first in range(0, len(indices), BATCH):
        part = list(indices[first : first + BATCH])
        stretches = read_stretches(dataset, next(iter(engines.values())).autoencoder, part, 1)
        seeds = [seed + index for index in part]
        for steps, engine in engines.items():
            real, rows = picture_rows(engine, stretches, roll_out(engine, stretches, seeds), constant)
            pictures[steps].append({name: frames[:, 0] for name, frames in rows.items()})
        reals.append(real[:, 0])
        progress(len(part))
    report = {}
    for steps, parts in pictures.items():
        rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        measured = measure_rows(np.concatenate(reals), rows)
        report[str(steps)] = {"rows": measured, "gap_closed": gap_closed(measured)}
    return report


# ------------------------------------------------------------------------------------------------ rollouts


def followed(targets: np.ndarray, step: int) -> np.ndarray:
    """int (n,): how many frames, its own included, a rollout from each window of a file can be compared with.

    targets: ascending rows.  step: rows from one frame to the next."""
    count = dict.fromkeys(targets.tolist(), 1)
    for row in reversed(targets.tolist()):
        count[row] = 1 + count.get(row + step, 0)
    return np.array([count[row] for row in targets.tolist()])


def places(dataset: WindowDataset, files: Sequence[int], length: int, wanted: int) -> tuple[list[int], int]:
    """(windows of `files` to roll out from, spread evenly, recorded frames after each): `length`, or what there is.

    Whole histories where there are any."""
    after = {number: followed(dataset.targets(number)[1], dataset.row_step) for number in files}
    recorded = length
    while recorded > 1:
        found = [dataset.targets(n)[0] + int(w) for n in files for w in np.flatnonzero(after[n] >= recorded)]
        whole = [index for index in found if dataset.window_rows(index)[0] >= 0]
        if len(whole or found) >= wanted:
            break
        recorded = max(1, int(recorded * SHORTER))
    else:
        found = [dataset.targets(n)[0] + w for n in files for w in range(len(after[n]))]
        whole = []
    found = whole or found
    return [found[place] for place in evenly(len(found), wanted)], recorded


class Tally:
    """One row of a rollout as it is drawn: PSNR of each frame where there is a real one, gradient, features."""

    def __init__(self, engine: GameEngine, first_frames: np.ndarray) -> None:
        """first_frames: uint8 (G, H, W, 3), the last frame before the rollout of each of G games."""
        self._autoencoder = engine.autoencoder
        self._last = first_frames
        self.psnr_db: list[np.ndarray] = []  # (G,) for each frame
        self.gradient: list[np.ndarray] = []
        self.features: list[np.ndarray] = []  # (G, D) for each frame

    def add(self, frames: np.ndarray, real: np.ndarray | None) -> None:
        """frames: uint8 (G, n, H, W, 3), the next ones.  real: what they are compared with, of the same shape."""
        vectors = []
        for game, film in enumerate(frames):
            vectors.append(play_features(self._autoencoder, np.concatenate([self._last[game][None], film])))
        self.features += list(np.stack(vectors, axis=1))
        for frame in range(frames.shape[1]):
            self.gradient.append(horizontal_gradient(frames[:, frame]))
            if real is not None and frame < real.shape[1]:
                self.psnr_db.append(psnr(frames[:, frame], real[:, frame]))
        self._last = frames[:, -1]


def rollouts(
    engine: GameEngine,
    dataset: WindowDataset,
    length: int,
    wanted: int,
    constant: np.ndarray,
    seed: int,
    progress: Progress,
) -> dict[str, object]:
    """`wanted` rollouts of `length` frames led by the recorded actions, which begin again where the recording ends.

    Every second file is played from; the others are what Fréchet distances are taken to. `psnr_by_frame`: {row: [dB of
    frame 1, 2, ...]} as far as there are real frames, here with `copy_last` held at the last context frame.
    `detail_to_ceiling`: mean horizontal gradient of the model's frames over that of the ceiling's. `frechet`: distance
    of real, ceiling and model to the other files' real frames; None with a single file. progress: frames drawn."""
    mine, others = list(range(1, len(dataset.paths), 2)), list(range(0, len(dataset.paths), 2))
    indices, recorded = places(dataset, mine or others, length, wanted)
    items = [dataset.stretch(index, recorded) for index in indices]
    context = engine.config.context_length
    seen = read_stretches(dataset, engine.autoencoder, indices, 1)
    played = torch.stack([item["actions"] for item in items])  # (G, L + recorded - 1)
    take_up(engine, seen, [seed + number for number in range(len(indices))])
    resize = engine.autoencoder.resize_frames
    last = np.concatenate([resize(item["frames"][context - 1 : context]).cpu().numpy() for item in items])
    shown_last = engine.autoencoder.reconstruct(last)
    tallies = {"real": Tally(engine, last), "ceiling": Tally(engine, shown_last), "model": Tally(engine, shown_last)}
    still = {"copy_last": [], "constant": []}
    for first in range(0, length, CHUNK):
        steps = range(first, min(length, first + CHUNK))
        drawn = np.stack([engine.step(played[:, context - 1 + step % recorded]) for step in steps], axis=1)
        real = None
        if first < recorded:
            rows = slice(context + first, context + min(recorded, first + CHUNK))
            real = np.stack([resize(item["frames"][rows]).cpu().numpy() for item in items])  # (G, n, H, W, 3)
            tallies["real"].add(real, None)
            tallies["ceiling"].add(np.stack([engine.autoencoder.reconstruct(film) for film in real]), real)
            for frame in range(real.shape[1]):
                still["copy_last"].append(psnr(last, real[:, frame]))
                still["constant"].append(psnr(np.broadcast_to(constant, last.shape), real[:, frame]))
        tallies["model"].add(drawn, real)
        progress(len(steps) * len(indices))
    by_frame = {**still, **{name: tallies[name].psnr_db for name in ("ceiling", "model")}}
    gradient = {name: float(np.mean(tally.gradient)) for name, tally in tallies.items()}
    reference = _reference(engine, dataset, others, recorded, len(indices)) if mine else None
    return {
        "frames": length,
        "rollouts": len(indices),
        "recorded_frames": recorded,
        "psnr_by_frame": {name: [float(each.mean()) for each in values] for name, values in by_frame.items()},
        "detail": {name: gradient[name] / max(1.0, gradient["real"]) for name in ("ceiling", "model")},
        "detail_to_ceiling": gradient["model"] / max(1e-6, gradient["ceiling"]),
        "frechet": _frechet(tallies, reference),
    }


def _reference(
    engine: GameEngine, dataset: WindowDataset, files: Sequence[int], length: int, wanted: int
) -> np.ndarray:
    """Features (N, D) of real play of other files, as many stretches, about as long, as were rolled out."""
    indices, recorded = places(dataset, files, length, wanted)
    context, vectors = engine.config.context_length, []
    for index in indices:
        frames = dataset.stretch(index, recorded)["frames"][context - 1 :]
        for first in range(0, recorded, CHUNK):  # each chunk begins with the frame before it
            part = frames[first : first + CHUNK + 1]
            vectors.append(play_features(engine.autoencoder, engine.autoencoder.resize_frames(part).cpu().numpy()))
    return np.concatenate(vectors)


def _frechet(tallies: dict[str, Tally], reference: np.ndarray | None) -> dict[str, object] | None:
    if reference is None:
        return None
    sets = {name: np.concatenate(tally.features) for name, tally in tallies.items()}
    distances = play_distances(reference, sets)
    smallest = min(len(reference), *(len(vectors) for vectors in sets.values()))
    return {
        **distances,
        "ratio": distances["model"] / max(1e-12, distances["real"]),
        "dimensions": reference.shape[1],
        "vectors": smallest,
        "is_enough": smallest >= VECTORS_PER_DIMENSION * reference.shape[1],
    }
