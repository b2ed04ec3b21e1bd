"""Promises of frechet.py: the closed form for Gaussians, features that see blur, stillness and flicker."""

import numpy as np
import pytest
from tiny_models import tiny_autoencoder

from frechet import frechet_distance, play_distances, play_features


def gaussian(mean: list[float], deviations: list[float], rng: np.random.Generator, count: int = 200) -> np.ndarray:
    """(count, D) vectors whose sample mean and covariance are exactly these: independent of each other."""
    drawn = rng.normal(size=(count, len(mean)))
    drawn -= drawn.mean(axis=0)
    white = drawn @ np.linalg.inv(np.linalg.cholesky(np.cov(drawn, rowvar=False).reshape(len(mean), -1))).T
    return white * deviations + mean


def test_between_gaussians_it_is_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    a, b = gaussian([0.0], [1.0], rng), gaussian([3.0], [2.0], rng)
    assert frechet_distance(a, b) == pytest.approx(9 + 1)  # 3^2 + (2 - 1)^2
    a, b = gaussian([1, 2, 3], [1, 2, 3], rng), gaussian([1, 2, 5], [2, 2, 1], rng)
    assert frechet_distance(a, b) == pytest.approx(4 + 1 + 0 + 4)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]  # the same, seen from another side
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(9)


def test_covariances_that_do_not_commute_still_count() -> None:
    rng = np.random.default_rng(1)
    long = gaussian([0, 0], [3, 1], rng)
    turned = long @ np.array([[0, 1], [-1, 0]])  # by a right angle: deviations (1, 3)
    assert frechet_distance(long, turned) == pytest.approx((3 - 1) ** 2 * 2)
    half = long @ np.array([[1, 1], [-1, 1]]) / 2**0.5
    # trace of (S_a S_b)^(1/2) is sqrt(tr S_a S_b + 2 sqrt det S_a S_b): S_a S_b has trace (9 + 1) * 5, determinant 81.
    assert frechet_distance(long, half) == pytest.approx(20 - 2 * (50 + 2 * 9) ** 0.5)


def test_it_is_nothing_from_a_set_to_itself_and_refuses_what_it_cannot_compare() -> None:
    rng = np.random.default_rng(2)
    a = rng.normal(size=(10, 4))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="at least two vectors"):
        frechet_distance(a, a[:1])
    with pytest.raises(ValueError, match=r"\(10, 4\) and \(10, 3\)"):
        frechet_distance(a, a[:, :3])


def test_each_feature_counts_as_much_whatever_its_unit() -> None:
    rng = np.random.default_rng(3)
    real, dream = gaussian([0, 0], [1, 1], rng), gaussian([1, 1], [1, 1], rng)
    unit = np.array([1.0, 1000.0])
    assert play_distances(real, {"model": dream}) == pytest.approx(play_distances(real * unit, {"model": dream * unit}))


def test_a_vector_for_each_frame_but_the_first_tells_still_play_from_moving_play() -> None:
    rng = np.random.default_rng(4)
    autoencoder = tiny_autoencoder()
    moving = rng.integers(0, 256, (5, 60, 80, 3)).astype(np.uint8)
    still = np.repeat(moving[:1], 5, axis=0)
    features = {name: play_features(autoencoder, frames) for name, frames in (("moving", moving), ("still", still))}
    assert features["moving"].shape == (4, 12 * autoencoder.latent_channels)
    changes = slice(8 * autoencoder.latent_channels, None)
    assert np.abs(features["still"][:, changes]).max() == 0 < features["moving"][:, changes].min()
    in_parts = play_features(autoencoder, moving, batch_size=2)
    assert np.allclose(in_parts, features["moving"], atol=1e-5)
    assert np.allclose(play_features(autoencoder, moving[2:]), features["moving"][2:], atol=1e-5)
