"""Does the dream obey? Keys held from recorded contexts, and what the picture does, beside the real game's frames.

Contexts are places where the recorded player held the same keys, so the real row shows what the measure gives on the
real game's own frames, and the ceiling row what it gives on those frames through the autoencoder: where these rows are
poor, the measure is, not the model. Only for games whose action table has Doom's buttons. Used by evaluate.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from action_alignment import grey_bands, sideways_shift
from data_loader import WindowDataset, evenly
from engine import GameEngine
from episodes import Episode
from validation import read_stretches, take_up

TURNS, WALKS = ("TURN_LEFT", "TURN_RIGHT"), ("MOVE_FORWARD", "MOVE_BACKWARD")
FIRE = "ATTACK"
MOST_SPREAD_PX = 12.0  # at 160 columns; more from frame to frame is a lost match, not a walk
LEAST_UNITS_PER_TIC = 6.0  # of a recorded walk that counts; running makes 16, pushing a wall 0
MOST_SIDEWAYS = 0.3  # of its way: more is a slide along a wall
GUN_BOX = (0.42, 0.67, 0.40, 0.60)  # top, bottom, left, right as shares of the picture: just above the gun
AMMO_BOX = (0.85, 0.94, 0.01, 0.145)  # the digits on the left of Doom's status bar
FALSE_ALARMS = 0.05  # share of contexts without a shot that may pass for one: sets the thresholds
BATCH = 16


def grey(frames: np.ndarray) -> np.ndarray:
    """uint8 (T, H, W, 3) -> float32 (T, H, W), luma in [0, 255]."""
    return frames.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def turn_px(frames: np.ndarray) -> float:
    """Columns, of at most 160 or so, by which the picture moves right per frame: positive while turning left.

    frames: uint8 (T, H, W, 3), consecutive; the median over the T - 1 steps, which a lost match does not move."""
    return float(np.median(sideways_shift(_bands(frames))))


def spread_px(frames: np.ndarray) -> float:
    """Columns per frame by which the picture's halves move apart: positive while walking forward. frames as above."""
    bands = _bands(frames)
    half = bands.shape[2] // 2
    apart = sideways_shift(bands[:, :, half:]) - sideways_shift(bands[:, :, :half])
    return float(np.clip(apart, -MOST_SPREAD_PX, MOST_SPREAD_PX).mean())


def flash(frames: np.ndarray) -> float:
    """How much brighter than in the first frame it gets above the gun, of 255."""
    light = _box(grey(frames), GUN_BOX).mean(axis=(1, 2))
    return float(light[1:].max() - light[0])


def ammo_change(frames: np.ndarray) -> float:
    """Mean absolute change of the ammunition's digits between the first and the last frame, of 255."""
    digits = _box(grey(frames[[0, -1]]), AMMO_BOX)
    return float(np.abs(digits[1] - digits[0]).mean())


def _bands(frames: np.ndarray) -> np.ndarray:
    return np.stack([grey_bands(picture) for picture in grey(frames)])  # (T, BANDS, W')


def _box(pictures: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    height, width = pictures.shape[1:]
    top, bottom, left, right = (
        round(share * side) for share, side in zip(box, (height, height, width, width), strict=True)
    )
    return pictures[:, top : max(bottom, top + 1), left : max(right, left + 1)]


def action_of(action_table: Sequence[dict], *buttons: str) -> int | None:
    """The id of the action that presses exactly these buttons."""
    return next((int(row["id"]) for row in action_table if set(row["buttons"]) == set(buttons)), None)


def find_holds(dataset: WindowDataset, buttons: tuple[str, ...], frames: int) -> list[int]:
    """Windows after which the recorded player, alive, held exactly `buttons` for `frames` frames; none overlap.

    A walk counts only where it got on straight, a shot only where ammunition fell, if the recording tells. The
    dataset's windows are of frames."""
    found = []
    for number, path in enumerate(dataset.paths):
        first, targets = dataset.targets(number)
        episode = Episode(path)
        action = action_of(episode.info.action_table or (), *buttons)
        starts = targets - dataset.row_step  # the last context frame
        rows = starts[:, None] + np.arange(frames) * dataset.row_step  # (n, frames), of the actions
        is_good = np.isin(rows + dataset.row_step, targets).all(axis=1)  # each step leads to a target of the same game
        is_good &= (episode.actions[np.minimum(rows, len(episode.actions) - 1)] == action).all(axis=1)
        is_good &= _is_as_meant(episode, starts, rows[:, -1] + dataset.row_step, buttons, dataset)
        end = -1
        for window in np.flatnonzero(is_good):
            if starts[window] >= end:
                found.append(first + int(window))
                end = rows[window, -1] + dataset.row_step
        episode.close()
    return found


def _is_as_meant(
    episode: Episode, starts: np.ndarray, ends: np.ndarray, buttons: tuple[str, ...], dataset: WindowDataset
) -> np.ndarray:
    """bool (n,): of stretches from row `starts` to `ends`, (n,) each, those in which the game did what the keys say."""
    known = episode.columns_present(("dead", "ammo", "position_x", "position_y", "position_angle"))
    ends = np.minimum(ends, len(episode.actions) - 1)
    is_good = np.ones(len(starts), dtype=bool)
    if "dead" in known:
        deaths = np.concatenate([[0], np.cumsum(known["dead"])])
        is_good &= deaths[ends + 1] == deaths[starts]
    if "ammo" in known and buttons == (FIRE,):
        is_good &= known["ammo"][ends] < known["ammo"][starts]
    if "position_angle" in known and buttons in ((WALKS[0],), (WALKS[1],)):
        east, north = (known[name][ends] - known[name][starts] for name in ("position_x", "position_y"))
        angle = np.deg2rad(known["position_angle"][starts])
        along = np.abs(east * np.cos(angle) + north * np.sin(angle))
        aside = np.abs(north * np.cos(angle) - east * np.sin(angle))
        tics = (ends - starts) * dataset.facts["tics_per_row"]
        is_good &= (along > LEAST_UNITS_PER_TIC * tics) & (aside < MOST_SIDEWAYS * along)
    return is_good


@dataclass
class Films:
    """What was seen from C contexts: uint8 (C, 1 + K, H, W, 3) each, the last context frame first.

    real: as recorded.  ceiling: that through the autoencoder.  model: for each wanted hold, by its buttons."""

    real: np.ndarray
    ceiling: np.ndarray
    model: dict[tuple[str, ...], np.ndarray]


Progress = Callable[[int], object]


def film(
    engine: GameEngine,
    dataset: WindowDataset,
    indices: Sequence[int],
    holds: Sequence[tuple[str, ...]],
    frames: int,
    seed: int,
    progress: Progress,
) -> Films:
    """From each window, what was recorded and what the model draws while each of `holds` is held for `frames` frames.

    progress: called with the number of contexts done."""
    length, real, ceiling = engine.config.context_length, [], []
    model: dict[tuple[str, ...], list[np.ndarray]] = {hold: [] for hold in holds}
    for first in range(0, len(indices), BATCH):
        part = list(indices[first : first + BATCH])
        stretches = read_stretches(dataset, engine.autoencoder, part, frames)
        shown = np.stack([engine.decode_latents(latents[length - 1 :]) for latents in stretches.latents])
        real.append(stretches.real)
        ceiling.append(shown)
        for hold in holds:
            take_up(engine, stretches, [seed + index for index in part])
            action = [action_of(engine.config.action_table, *hold)] * len(part)
            drawn = [engine.step(action) for _ in range(frames)]
            model[hold].append(np.stack([shown[:, 0], *drawn], axis=1))
        progress(len(part))
    return Films(np.concatenate(real), np.concatenate(ceiling), {k: np.concatenate(v) for k, v in model.items()})


def _each(measure: Callable[[np.ndarray], float], films: np.ndarray) -> np.ndarray:
    return np.array([measure(frames) for frames in films])


def _share(truths: np.ndarray) -> float:
    return float(np.mean(truths))


def turning(left: Films, right: Films) -> dict[str, dict[str, float]]:
    """Rows of the turning keys. `left`, `right`: contexts where the player turned that way; the model does both in all.

    left_share, right_share: of contexts where the view turns that way; opposite_share: where both do.
    px_per_frame: median shift, in columns as `turn_px` counts them."""
    rows = {}
    for name in ("real", "ceiling"):
        to_left, to_right = _each(turn_px, getattr(left, name)), _each(turn_px, getattr(right, name))
        rows[name] = _turn_row(to_left, to_right)
    held = [np.concatenate([films.model[(turn,)] for films in (left, right)]) for turn in TURNS]
    to_left, to_right = (_each(turn_px, films) for films in held)
    rows["model"] = {**_turn_row(to_left, to_right), "opposite_share": _share((to_left > 0) & (to_right < 0))}
    return rows


def _turn_row(to_left: np.ndarray, to_right: np.ndarray) -> dict[str, float]:
    return {
        "left_share": _share(to_left > 0),
        "right_share": _share(to_right < 0),
        "px_per_frame": float(np.median(np.concatenate([to_left, -to_right]))),
    }


def walking(forward: Films, back: Films) -> dict[str, dict[str, float]]:
    """Rows of walking: shares of contexts that come nearer going forward and recede going back, where the way is free.

    forward_px, back_px: median columns per frame by which the picture's halves part."""
    rows = {}
    for name in ("real", "ceiling", "model"):
        films = [getattr(each, name) for each in (forward, back)]
        if name == "model":
            films = [each.model[(walk,)] for each, walk in zip((forward, back), WALKS, strict=True)]
        nearer, farther = (_each(spread_px, each) for each in films)
        rows[name] = {
            "forward_share": _share(nearer > 0),
            "back_share": _share(farther < 0),
            "forward_px": float(np.median(nearer)),
            "back_px": float(np.median(farther)),
        }
    return rows


def firing(fired: Films, still: Films) -> dict[str, dict[str, float]]:
    """Rows of the fire key: shares of contexts with a flash, and with other ammunition digits after it.

    `fired`: contexts where the player shot; the model shoots and waits in all of them.  `still`: contexts where nothing
    was pressed. idle_flash_share, idle_ammo_share: the same without a shot. Thresholds: what FALSE_ALARMS of the still
    contexts exceed, in the real frames for the real row, through the autoencoder for the others."""
    rows = {}
    measures = {"flash": flash, "ammo": ammo_change}
    for name in ("real", "ceiling", "model"):
        shots, waits = (
            (fired.model[(FIRE,)], fired.model[()]) if name == "model" else (getattr(fired, name), getattr(still, name))
        )
        row = {}
        for what, measure in measures.items():
            idle = _each(measure, still.real if name == "real" else still.ceiling)
            threshold = float(np.quantile(idle, 1 - FALSE_ALARMS))
            row[f"{what}_share"] = _share(_each(measure, shots) > threshold)
            row[f"idle_{what}_share"] = _share(_each(measure, waits) > threshold)
        rows[name] = row
    return rows


HOLDS = {  # measure -> (function of two films, what the player held in either, what the model holds in either)
    "turning": (turning, ((TURNS[0],), (TURNS[1],)), [[(TURNS[0],), (TURNS[1],)]] * 2),
    "walking": (walking, ((WALKS[0],), (WALKS[1],)), [[(WALKS[0],)], [(WALKS[1],)]]),
    "firing": (firing, ((FIRE,), ()), [[(FIRE,), ()], []]),
}


def number_of_contexts(num_contexts: int) -> int:
    """How many contexts `measure_obedience` goes through at most."""
    return num_contexts * sum(len(recorded) for _, recorded, _ in HOLDS.values())


def measure_obedience(
    engine: GameEngine, dataset: WindowDataset, num_contexts: int, frames: int, seed: int, progress: Progress
) -> dict[str, dict]:
    """{measure: its rows, and how many contexts each half had}, or {measure: {"missing": why}}.

    num_contexts: for each of a measure's two halves. dataset: windows of frames, held out."""
    report: dict[str, dict] = {}
    for name, (measure, recorded, wanted) in HOLDS.items():
        lacking = [hold for half in wanted for hold in half if action_of(engine.config.action_table, *hold) is None]
        if lacking:
            report[name] = {"missing": f"no action of this game presses only {'+'.join(lacking[0]) or 'nothing'}"}
            continue
        found = [find_holds(dataset, hold, frames) for hold in recorded]
        if not all(found):
            hold = recorded[0 if not found[0] else 1]
            report[name] = {"missing": f"nobody holds {'+'.join(hold) or 'nothing'} for {frames} frames in this play"}
            continue
        chosen = [[windows[place] for place in evenly(len(windows), num_contexts)] for windows in found]
        films = [
            film(engine, dataset, indices, holds, frames, seed, progress)
            for indices, holds in zip(chosen, wanted, strict=True)
        ]
        report[name] = {"rows": measure(*films), "contexts": [len(indices) for indices in chosen]}
    return report
