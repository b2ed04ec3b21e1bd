"""By how many rows do recorded actions lead the picture? Measured from the pictures and the ids alone.

Turning shifts the picture sideways, so that shift must start and stop with the keys that turn. What is compared are
changes: keys are held for several tics, and only where they change does a delay of one row show. Where sideways shift
tells nothing, as in a game without turning, the same is done with how much the picture changes.

Knows neither files nor models: frames and actions in, numbers out. Used by check_data.py.

`lead` L: the action of row t shows in the step from frame t+L-1 to frame t+L. By the rule of data_loader.py it is 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

EXPECTED_LEAD = 1
LEADS = np.arange(-7, 10)  # -8 .. 8 rows about the expected one
COLUMNS = 160  # of a picture, at most, when shifts are measured
BANDS = 12
UPPER_PART = 0.6  # of the picture's height; below it are weapon and status bar, which do not turn
BLOCK_ROWS = 32  # resampled together: neighbouring rows are not independent
RESAMPLES = 200
MIN_CHANGES = 20  # of the keys; fewer cannot tell
MIN_CONFIDENCE = 0.9
MIN_EVIDENCE = 3.0  # correlation in standard errors, as if every change were independent


def grey_bands(frame: np.ndarray) -> np.ndarray:
    """uint8 (H, W) grey -> float32 (BANDS, W') in [0, 255]: means over blocks of the upper part, W' at most COLUMNS."""
    upper = frame[: max(BANDS, int(len(frame) * UPPER_PART))].astype(np.float32)
    factor = max(1, round(upper.shape[1] / COLUMNS))
    upper = upper[:, : upper.shape[1] // factor * factor].reshape(len(upper), -1, factor).mean(axis=2)
    edges = np.linspace(0, len(upper), min(BANDS, len(upper)) + 1).astype(int)
    return np.add.reduceat(upper, edges[:-1], axis=0) / np.diff(edges)[:, None]


def sideways_shift(bands: np.ndarray) -> np.ndarray:
    """float32 (T, B, W) -> float32 (T - 1,): columns by which each picture moved right to become the next one.

    Phase correlation (Kuglin & Hines 1975) along each band, the bands' correlations added up; peak to a fraction of a
    column by a parabola, at most a quarter of the width."""
    window = np.hanning(bands.shape[2]).astype(np.float32)
    spectra = np.fft.rfft((bands - bands.mean(axis=2, keepdims=True)) * window, axis=2)  # (T, B, W // 2 + 1)
    cross = spectra[1:] * spectra[:-1].conj()
    cross /= np.abs(cross) + 1e-3 * (np.abs(cross).mean() + 1e-12)
    correlation = np.fft.irfft(cross.sum(axis=1), n=bands.shape[2], axis=1)  # (T - 1, W)
    reach = max(1, bands.shape[2] // 4)
    near = np.concatenate([correlation[:, -reach:], correlation[:, : reach + 1]], axis=1)  # shifts -reach .. reach
    peak = near.argmax(axis=1)
    row, inner = np.arange(len(near)), peak.clip(1, 2 * reach - 1)
    left, middle, right = near[row, inner - 1], near[row, inner], near[row, inner + 1]
    curve = left - 2 * middle + right
    offset = np.where((inner == peak) & (curve < 0), 0.5 * (left - right) / np.where(curve < 0, curve, -1), 0)
    return (peak - reach + offset).astype(np.float32)


def picture_change(bands: np.ndarray) -> np.ndarray:
    """float32 (T, B, W) -> float32 (T - 1,): log of 1 + the mean absolute change from one picture to the next."""
    return np.log1p(np.abs(np.diff(bands, axis=0)).mean(axis=(1, 2)))


@dataclass(frozen=True)
class Play:
    """One unbroken stretch of a game. `actions`: int64 (T,).  `shift`, `change`: float32 (T - 1,), step t -> t + 1."""

    file: int
    actions: np.ndarray
    shift: np.ndarray
    change: np.ndarray

    @classmethod
    def of(cls, file: int, actions: np.ndarray, bands: np.ndarray) -> "Play":
        """bands: float32 (T, B, W), any number of bands."""
        return cls(file, actions, sideways_shift(bands), picture_change(bands))


@dataclass(frozen=True)
class Estimate:
    """What the data says of its lead. `lead` is None where it cannot tell, and `reason` then says why."""

    lead: int | None
    confidence: float  # share of resampled data sets with the same answer
    correlation: float
    changes: int  # rows at which the keys looked at change
    method: str
    correlations: dict[int, float]
    reason: str = ""


def estimate_lead(plays: Sequence[Play], turns: dict[int, int] | None = None) -> Estimate:
    """The lead of all `plays` together, by the first of three methods that can tell.

    turns: action id -> +1 for those that turn left (the picture moves right), -1 for right; others are 0. Without it,
    or where few turn, each action's mean shift, or mean change of the picture, is learned from one half of the rows
    and tried on the other."""
    estimates = []
    if turns and any(turns.values()):
        estimates.append(_estimate(plays, "sideways shift against turns", "shift", turns))
    for method, motion in (("sideways shift by action", "shift"), ("change of the picture by action", "change")):
        if not (estimates and estimates[-1].lead is not None):
            estimates.append(_estimate(plays, method, motion, None))
    return next((estimate for estimate in estimates if estimate.lead is not None), estimates[0])


def _estimate(plays: Sequence[Play], method: str, motion: str, turns: dict[int, int] | None) -> Estimate:
    sums, changes = [], 0
    for play, signals in zip(plays, _signals(plays, motion, turns), strict=True):
        changes += int((np.diff(signals[EXPECTED_LEAD]) != 0).sum())
        sums.append(_block_sums(signals, getattr(play, motion)))
    total = np.concatenate(sums) if sums else np.zeros((0, len(LEADS), 3))  # (blocks, leads, 3)
    correlations = _correlation(total.sum(axis=0))
    best = int(correlations.argmax())
    weights = np.random.default_rng(0).multinomial(len(total), np.full(len(total), 1 / max(1, len(total))), RESAMPLES)
    resampled = _correlation(np.einsum("rb,blk->rlk", weights, total)).argmax(axis=-1) if len(total) else np.zeros(1)
    confidence = float((resampled == best).mean())
    if changes < MIN_CHANGES:
        reason = f"the keys change {changes} times, {MIN_CHANGES} are needed"
    elif correlations[best] * np.sqrt(changes) < MIN_EVIDENCE or confidence < MIN_CONFIDENCE:
        reason = f"no lead stands out (correlation {correlations[best]:.2f}, confidence {confidence:.0%})"
    else:
        reason = ""
    by_lead = {int(lead): round(float(value), 3) for lead, value in zip(LEADS, correlations, strict=True)}
    lead = None if reason else int(LEADS[best])
    return Estimate(lead, confidence, float(correlations[best]), changes, method, by_lead, reason)


def _signals(plays: Sequence[Play], motion: str, turns: dict[int, int] | None) -> list[dict[int, np.ndarray]]:
    """Per play, for each lead: float (T,), the motion that each row's action stands for."""
    if turns is not None:
        known = [np.array([turns.get(int(action), 0) for action in play.actions], dtype=float) for play in plays]
        return [dict.fromkeys(LEADS.tolist(), signal) for signal in known]
    count = 1 + max((int(play.actions.max()) for play in plays), default=0)
    result: list[dict[int, np.ndarray]] = [{} for _ in plays]
    for lead in LEADS.tolist():
        totals, rows = np.zeros((2, count)), np.zeros((2, count))
        for play in plays:
            at, step = _paired(len(play.actions), lead)
            for half in (0, 1):
                mine = _half(at) == half
                np.add.at(totals[half], play.actions[at[mine]], getattr(play, motion)[step[mine]])
                np.add.at(rows[half], play.actions[at[mine]], 1)
        overall = totals.sum(axis=1, keepdims=True) / np.maximum(1, rows.sum(axis=1, keepdims=True))
        means = np.where(rows > 0, totals / np.maximum(1, rows), overall) - overall  # (2, actions)
        for play, signals in zip(plays, result, strict=True):
            signals[lead] = means[1 - _half(np.arange(len(play.actions))), play.actions]
    return result


def _half(rows: np.ndarray) -> np.ndarray:
    return rows // BLOCK_ROWS % 2


def _paired(count: int, lead: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows t, steps t + lead - 1) that both exist, in a play of `count` rows."""
    at = np.arange(max(0, 1 - lead), min(count, count - lead))
    return at, at + lead - 1


def _block_sums(signals: dict[int, np.ndarray], motion: np.ndarray) -> np.ndarray:
    """float (blocks, leads, 3): sums of x y, x x and y y, x a change of the signal, y the change of motion it leads.

    Jumps of the motion beyond its usual (deaths, cuts) are cut down, so that a few of them decide nothing."""
    count = len(motion) + 1
    jumps = np.diff(motion)  # jumps[i]: from step i to step i + 1
    usual = np.percentile(np.abs(jumps), 95) if len(jumps) else 0.0
    jumps = np.clip(jumps, -usual, usual)
    blocks = -(-count // BLOCK_ROWS)
    sums = np.zeros((blocks, len(LEADS), 3))
    for place, lead in enumerate(LEADS.tolist()):
        at, step = _paired(count, lead)
        at, step = at[1:], step[1:]  # a change needs the row before
        if len(at) == 0:
            continue
        x, y = signals[lead][at] - signals[lead][at - 1], jumps[step - 1]
        # Rows at a block's edge belong half to either half's means: their change is of the means, not of the keys.
        x = np.where(_half(at) == _half(at - 1), x, 0.0)
        for column, product in enumerate((x * y, x * x, y * y)):
            np.add.at(sums[:, place, column], at // BLOCK_ROWS, product)
    return sums


def _correlation(sums: np.ndarray) -> np.ndarray:
    """(..., 3) sums of x y, x x, y y -> their correlation, 0 where nothing moves."""
    return sums[..., 0] / np.sqrt(np.maximum(sums[..., 1] * sums[..., 2], 1e-12))
