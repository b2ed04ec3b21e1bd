"""The measures: PSNR and detail of pictures against the real frames, always in rows that belong together.

Knows no networks: uint8 pictures in, numbers out. A PSNR without its companion rows says nothing (copy-last is good at
one step, a constant picture scores 19 dB on Doom), and blur buys PSNR, so every PSNR stands beside its detail.
"""

from collections.abc import Mapping

import numpy as np

ROWS = ("copy_last", "constant", "ceiling", "model")  # always printed together, in this order
SMALLEST_GAP_DB = 2.0


def psnr(frames: np.ndarray, real: np.ndarray) -> np.ndarray:
    """PSNR of each picture in dB, float64 (T,). Both uint8 (T, H, W, 3).

    Identical pictures count as 58.9 dB, what rounding to 8 bits leaves (error variance 1/12), so means stay finite.
    Raises ValueError when the shapes differ.
    """
    _check(frames, real)
    error = ((frames.astype(np.float64) - real.astype(np.float64)) ** 2).mean(axis=(1, 2, 3))
    return 10 * np.log10(255.0**2 / np.maximum(error, 1 / 12))


def horizontal_gradient(frames: np.ndarray) -> np.ndarray:
    """Mean absolute difference of horizontal neighbours, float64 (T,). frames: uint8 (T, H, W, 3)."""
    return np.abs(np.diff(frames.astype(np.int16), axis=2)).mean(axis=(1, 2, 3))


def detail(frames: np.ndarray, real: np.ndarray) -> float:
    """Horizontal gradient of all pictures over that of the real ones: 1 is as sharp, 0 is flat.

    A flat `real` counts as a gradient of 1 / 255 of the range, so that the figure stays finite.
    """
    _check(frames, real)
    return float(horizontal_gradient(frames).mean()) / max(1.0, float(horizontal_gradient(real).mean()))


def mean_frame(frames: np.ndarray) -> np.ndarray:
    """The mean picture, uint8 (H, W, 3), of (T, H, W, 3): the row `constant`, 19 dB on Doom at any distance."""
    return frames.mean(axis=0).round().astype(np.uint8)


def measure_rows(real: np.ndarray, pictures: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """{row: {"psnr_db", "detail"}} of each picture row against `real`, uint8 (T, H, W, 3); psnr_db: mean of frames."""
    return {
        name: {"psnr_db": float(psnr(frames, real).mean()), "detail": detail(frames, real)}
        for name, frames in pictures.items()
    }


def gap_closed(rows: Mapping[str, Mapping[str, float]]) -> float | None:
    """(model - copy-last) / (ceiling - copy-last) in dB; None where that gap is under 2 dB and the share is noise."""
    gap = rows["ceiling"]["psnr_db"] - rows["copy_last"]["psnr_db"]
    return (rows["model"]["psnr_db"] - rows["copy_last"]["psnr_db"]) / gap if gap >= SMALLEST_GAP_DB else None


def format_rows(rows: Mapping[str, Mapping[str, float]]) -> str:
    """The rows as a small table, with the share of the gap under it where it means something."""
    lines = [f"{'row':<10} {'PSNR dB':>8} {'detail':>7}"]
    lines += [f"{name:<10} {rows[name]['psnr_db']:>8.2f} {rows[name]['detail']:>7.2f}" for name in ROWS if name in rows]
    share = gap_closed(rows) if all(name in rows for name in ROWS) else None
    if share is not None:
        lines.append(f"share of the gap between copy_last and ceiling that the model closes: {share:.0%}")
    return "\n".join(lines)


def _check(frames: np.ndarray, real: np.ndarray) -> None:
    if frames.shape != real.shape or frames.ndim != 4:
        raise ValueError(f"expected two (T, H, W, 3) arrays of one shape, got {frames.shape} and {real.shape}")
