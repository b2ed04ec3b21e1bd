"""Fréchet distance between two sets of play, on features that need no download: what the autoencoder sees of them.

A feature vector describes a frame and the step that led to it. Lower is more alike; it only means something beside the
distance between two sets of real play, measured with as many frames. Knows no files. Used by held_out_measures.py.
"""

import numpy as np
import torch
from torch import Tensor

from model import Autoencoder

GRID = 2  # cells a side: where in the picture something is, coarsely, so that dimensions stay below frames


@torch.no_grad()
def play_features(autoencoder: Autoencoder, frames: np.ndarray, batch_size: int = 32) -> np.ndarray:
    """float64 (T - 1, D) of consecutive frames, uint8 (T, H, W, 3): one vector for each frame but the first.

    Per latent channel and cell of a GRID x GRID division: the mean, the deviation, and the mean absolute change since
    the frame before, so that a still or a flickering dream is as far off as a blurred one. D = 12 x latent channels."""
    parts = [
        autoencoder.sample_latents(autoencoder.encode_pixels(autoencoder.frames_to_pixels(frames[first:][:batch_size])))
        for first in range(0, len(frames), batch_size)
    ]
    latents = torch.cat(parts).double()  # (T, C, h, w)
    now, change = latents[1:], (latents[1:] - latents[:-1]).abs()
    mean = _cells(now)
    deviation = (_cells(now**2) - mean**2).clamp(min=0).sqrt()
    return torch.cat([mean, deviation, _cells(change)], dim=1).flatten(1).cpu().numpy()  # (T - 1, 3 C GRID^2)


def _cells(values: Tensor) -> Tensor:
    """(T, C, h, w) -> (T, C, GRID, GRID), means."""
    return torch.nn.functional.adaptive_avg_pool2d(values, GRID)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Between the Gaussians fitted to two sets of vectors, (N, D) and (M, D).

    |mean_a - mean_b|^2 + trace(S_a + S_b - 2 (S_a S_b)^(1/2)); Dowson & Landau 1982. Raises ValueError for sets of one
    vector or of different dimensions."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"expected two sets (N, D) of at least two vectors each, got {a.shape} and {b.shape}")
    gap = a.mean(axis=0) - b.mean(axis=0)
    cov_a, cov_b = (np.cov(x, rowvar=False).reshape(x.shape[1], x.shape[1]) for x in (a, b))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T  # of S_a, so that what follows is symmetric
    shared = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)).sum()  # trace of (S_a S_b)^(1/2)
    return float(max(0.0, gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * shared))


def play_distances(reference: np.ndarray, sets: dict[str, np.ndarray]) -> dict[str, float]:
    """Each set's Fréchet distance to `reference`, all features scaled by its deviations: each counts as much."""
    scale = np.maximum(reference.std(axis=0), 1e-6)
    return {name: frechet_distance(vectors / scale, reference / scale) for name, vectors in sets.items()}
