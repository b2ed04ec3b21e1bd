"""Inspects a data set before a model is trained on it: episodes or latents, ours or published ones.

Counts what is there, names every broken file, and measures from pictures and ids alone by how many rows the actions
lead the picture: a data set shifted by a row or two looks like any other and trains a model that answers late.

    python check_data.py episodes
    python check_data.py arnaudstiegler/vizdoom-5-episodes-skipframe-4-lvl5 --json check.json

Exit code 0: nothing wrong was found; 1: the actions are shifted; 2: files are broken or do not go together.
"""

import argparse
import io
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import command_line
from command_line import BadInput

if TYPE_CHECKING:
    import numpy as np

    from action_alignment import Estimate, Play

STRETCH_ROWS = 512  # decoded in a row, when not every frame is looked at
DRAFT_SIZE = (160, 120)  # JPEG pictures are decoded at about this size, which takes a fraction of the time


def build_parser() -> argparse.ArgumentParser:
    arguments = command_line.parser(__doc__)
    add = arguments.add_argument
    add("path", help="folder of episode_*.parquet or latent_episode_*.pt, one such file, or a data set on the Hub")
    add("--json", type=Path, help="file to write the same findings to; default: none")
    add(
        "--max_frames",
        type=command_line.not_negative,
        default=20_000,
        help="frames to decode, spread over all files; 0: every one, which also finds every broken picture",
    )
    add("--legacy_alignment", choices=("before", "after"), default="before", help="for .pt files without metadata")
    return arguments


@dataclass
class Findings:
    """What was seen; `plays` is what the alignment is measured from."""

    kind: str
    files: int
    broken: dict[str, str] = field(default_factory=dict)  # file -> what is wrong
    games: int = 0
    frames: int = 0
    frames_looked_at: int = 0
    size: str = ""
    seconds: float = 0.0
    tics_per_row: int = 1
    stored: Counter = field(default_factory=Counter)  # how files pair frame and action -> how many
    used: Counter = field(default_factory=Counter)  # action id -> frames
    action_table: list[dict[str, Any]] | None = None
    plays: "list[Play]" = field(default_factory=list)


def main(args: argparse.Namespace) -> None:
    from artifacts import write_json
    from dataset_folders import dataset_folder

    folder = dataset_folder(args.path, "episodes", "latents")
    kind, paths = find_files(folder)
    command_line.print_settings(args, kind=kind, files=len(paths))
    if kind == "latents":
        import torch  # noqa: F401  (its start-up takes seconds; better before the bar than within it)
    from tqdm import tqdm

    from action_alignment import estimate_lead

    findings = Findings(kind, len(paths))
    look = look_at_episode if kind == "episodes" else look_at_latents
    quota = -(-args.max_frames // len(paths)) if args.max_frames else None
    first: Any = None
    for number, path in enumerate(tqdm(paths, unit="file", desc="check", disable=None)):
        try:
            first = look(findings, number, path, quota, first, args.legacy_alignment)
        except BadInput as error:
            findings.broken[str(path)] = " ".join(str(error).split()).removeprefix(f"{path}: ").removeprefix(f"{path} ")
    estimate = estimate_lead(findings.plays, turns_of(findings.action_table))
    shifted = shifted_files(findings, paths, estimate)
    report = summary(findings, estimate, shifted, str(args.path))
    print_report(findings, estimate, report)
    if args.json:
        write_json(args.json, report)
    if findings.broken:
        sys.exit(2)
    if report["alignment"]["shift_rows"]:
        sys.exit(1)


def find_files(folder: Path) -> tuple[str, list[Path]]:
    """("episodes" or "latents", files). Raises BadInput where there are neither."""
    from episodes import find_episodes, find_latents

    if not folder.exists():
        raise BadInput(f"{folder}: no such file or folder, and no data set on the Hub like owner/name; name another")
    for kind, find in (("episodes", find_episodes), ("latents", find_latents)):
        try:
            return kind, find(folder)
        except BadInput:
            continue
    raise BadInput(f"{folder}: no .parquet and no .pt files in it; name a folder of episodes or latents")


# ---------------------------------------------------------------------------------------------------- one file


def look_at_episode(findings: Findings, number: int, path: Path, quota: int | None, first: Any, _: str) -> Any:
    """Adds one parquet file to the findings; returns the first good file's facts. Raises BadInput when it is broken."""
    import numpy as np

    from action_alignment import Play
    from episodes import Episode, common_facts

    episode = Episode(path)
    try:
        info = episode.info
        if first is not None:
            common_facts([first, info])
        plays, looked_at = [], 0
        for rows in stretches(episode.starts, info.rows, quota):
            bands = np.stack([band for band in decoded_bands(episode, rows)])
            plays.append(Play.of(number, episode.actions[rows], bands))
            looked_at += len(rows)
    finally:
        episode.close()
    findings.plays += plays
    findings.frames_looked_at += looked_at
    kind = "ours" if info.metadata else "without metadata"
    findings.stored[f"{kind}, frame stored {info.alignment} its action"] += 1
    count(findings, episode.actions, len(episode.starts), info.tics_per_row, info.tics_per_second)
    findings.size, findings.action_table = f"{info.width}x{info.height}", info.action_table
    return first or info


def decoded_bands(episode: Any, rows: "np.ndarray") -> "Iterator[np.ndarray]":
    """What alignment needs of each row's picture. Raises BadInput naming a row whose picture is broken."""
    import numpy as np
    from PIL import Image

    from action_alignment import grey_bands

    done = 0
    for encoded in episode.iter_encoded(rows, 64):
        for picture in encoded:
            try:
                with Image.open(io.BytesIO(picture)) as image:
                    size = image.size
                    image.draft("L", DRAFT_SIZE)
                    bands = grey_bands(np.asarray(image.convert("L")))
            except (OSError, SyntaxError, ValueError, TypeError):
                raise BadInput(f"{episode.path}: the frame of row {rows[done]} is not a readable picture") from None
            if size != (episode.info.width, episode.info.height):
                raise BadInput(f"{episode.path}: the frame of row {rows[done]} is {size[0]}x{size[1]}")
            done += 1
            yield bands


def look_at_latents(
    findings: Findings, number: int, path: Path, quota: int | None, first: Any, legacy_alignment: str
) -> Any:
    """Adds one latent file to the findings; returns the first good file's facts. Raises BadInput when it is broken."""
    from action_alignment import Play
    from episodes import number_of_actions
    from latents import LatentFile

    file = LatentFile(path, legacy_alignment)
    facts = {**file.facts, "action table": file.action_table}
    for name, value in facts.items():
        if first is not None and value != first[name]:
            raise BadInput(f"{path}: its {name} is not that of the files before it; keep them in separate folders")
    if len(file.actions) == 0:
        raise BadInput(f"{path} is empty")
    limit = number_of_actions(file.action_table) if file.action_table else None
    if file.actions.min() < 0 or (limit and file.actions.max() >= limit):
        raise BadInput(f"{path}: action ids {file.actions.min()}..{file.actions.max()} are not all in its table")
    channels = facts["shape"][0]
    is_gaussian = file.metadata.get("posterior", "gaussian" if channels % 2 == 0 else "none") == "gaussian"
    plays, looked_at = [], 0
    for rows in stretches(file.starts, len(file.actions), quota):
        moments = file.rows(int(rows[0]), int(rows[-1]) + 1, 1).float()
        if not moments.isfinite().all():
            raise BadInput(f"{path}: holds numbers that are not finite")
        means = moments[:, : channels // 2] if is_gaussian else moments  # (T, C, h, w)
        upper = means[:, :, : max(1, int(means.shape[2] * 0.6))]
        plays.append(Play.of(number, file.actions[rows], upper.flatten(1, 2).numpy()))
        looked_at += len(rows)
    findings.plays += plays
    findings.frames_looked_at += looked_at
    kind = "ours" if file.metadata else f"without metadata, read as frame stored {legacy_alignment} its action"
    findings.stored[kind] += 1
    count(findings, file.actions, len(file.starts), file.tics_per_row, facts["tics_per_second"])
    findings.size, findings.action_table = "x".join(str(side) for side in facts["shape"]), file.action_table
    return first or facts


def stretches(starts: "np.ndarray", rows: int, quota: int | None) -> "Iterator[np.ndarray]":
    """Ascending rows to look at: of each game a share of `quota` (None: all), in pieces spread evenly over it."""
    import numpy as np

    for start, end in zip(starts, [*starts[1:], rows], strict=True):
        length = int(end - start)
        share = length if quota is None else min(length, -(-quota * length // rows))
        pieces = max(1, -(-share // STRETCH_ROWS))
        size = min(length, -(-share // pieces))
        if share == length:
            pieces, size = 1, length
        for piece in range(pieces):
            first = int(start) + (piece * (length - size) // max(1, pieces - 1) if pieces > 1 else (length - size) // 2)
            yield np.arange(first, first + size)


def count(findings: Findings, actions: "np.ndarray", games: int, tics_per_row: int, tics_per_second: float) -> None:
    findings.games += games
    findings.frames += len(actions)
    findings.tics_per_row = tics_per_row
    findings.seconds += len(actions) * tics_per_row / tics_per_second
    findings.used.update(actions.tolist())


# ---------------------------------------------------------------------------------------------------- all files


def turns_of(action_table: list[dict[str, Any]] | None) -> dict[int, int] | None:
    """Action id -> +1 where it turns left, -1 where right, 0 otherwise; None without a table."""
    if not action_table:
        return None
    pressed = {int(row["id"]): set(row.get("buttons", ())) for row in action_table}
    return {id: int("TURN_LEFT" in buttons) - int("TURN_RIGHT" in buttons) for id, buttons in pressed.items()}


def shifted_files(findings: Findings, paths: list[Path], estimate: "Estimate") -> dict[str, int]:
    """Files whose own lead is known and is not that of all together."""
    from action_alignment import estimate_lead

    turns, found = turns_of(findings.action_table), {}
    numbers = sorted({play.file for play in findings.plays})
    for number in numbers if len(numbers) > 1 else []:
        own = estimate_lead([play for play in findings.plays if play.file == number], turns)
        if own.lead is not None and own.lead != estimate.lead:
            found[str(paths[number])] = own.lead
    return found


def summary(findings: Findings, estimate: "Estimate", shifted: dict[str, int], path: str) -> dict[str, Any]:
    """The findings as JSON."""
    from action_alignment import EXPECTED_LEAD

    table = findings.action_table or [{"id": id, "name": str(id)} for id in range(1 + max(findings.used, default=-1))]
    names = {int(row["id"]): row["name"] for row in table}
    shift = estimate.lead - EXPECTED_LEAD if estimate.lead is not None else None
    alignment = {**asdict(estimate), "expected_lead": EXPECTED_LEAD, "shift_rows": shift, "files_that_differ": shifted}
    report = {
        "path": path,
        "kind": findings.kind,
        "files": findings.files,
        "broken": findings.broken,
        "games": findings.games,
        "frames": findings.frames,
        "frames_looked_at": findings.frames_looked_at,
        "size": findings.size,
        "seconds": round(findings.seconds, 2),
        "tics_per_row": findings.tics_per_row,
        "stored": dict(findings.stored),
        "has_action_table": findings.action_table is not None,
        "actions": [{"id": id, "name": names[id], "frames": findings.used[id]} for id in sorted(findings.used)],
        "unused": [{"id": id, "name": names[id]} for id in sorted(names) if id not in findings.used],
        "alignment": alignment,
    }
    return {**report, "verdict": verdict(report, estimate)}


def verdict(report: dict[str, Any], estimate: "Estimate") -> str:
    """One line that says what to do."""
    words = []
    if report["broken"]:
        words.append(f"{len(report['broken'])} of {report['files']} files are broken: delete them or record them again")
    shift, tics = report["alignment"]["shift_rows"], report["tics_per_row"]
    if shift is None:
        words.append(f"whether the actions are aligned cannot be told: {estimate.reason}")
    elif shift == 0 and report["alignment"]["files_that_differ"]:
        words.append(f"aligned on the whole, but not {', '.join(report['alignment']['files_that_differ'])}")
    elif shift == 0:
        words.append("aligned: actions[t] leads to frames[t+1]")
    else:
        when = "late" if shift > 0 else "early"
        words.append(
            f"SHIFTED: the picture answers {abs(shift)} rows ({abs(shift) * tics} tics) {when}; pair frames[t] with "
            f"actions[t{-shift:+d}] before training on it"
        )
    return "; ".join(words)


def print_report(findings: Findings, estimate: "Estimate", report: dict[str, Any]) -> None:
    broken, total = len(findings.broken), max(1, findings.frames)
    print(f"\n{findings.files - broken} {findings.kind} files in order, {broken} broken, {findings.games} games")
    for stored, files in findings.stored.items():
        print(f"format: {stored} ({files} files)")
    unit = "of" if findings.kind == "episodes" else "of moments"
    print(f"{findings.frames} frames {unit} {findings.size}, {findings.seconds:.1f} s of play, "
          f"a row every {findings.tics_per_row} tics; {findings.frames_looked_at} frames looked at")  # fmt: skip
    print(f"{len(report['actions'])} actions used{'' if findings.action_table else ', whose names nobody wrote down'}:")
    for row in report["actions"]:
        print(f"  {row['id']:3d}  {row['name']:40s} {row['frames']:9d} frames {row['frames'] / total:6.1%}")
    if report["unused"]:
        print(f"unused: {', '.join(str(row['id']) + ' ' + row['name'] for row in report['unused'])}")
    for path, reason in findings.broken.items():
        print(f"broken: {path}: {reason}")
    for path, lead in report["alignment"]["files_that_differ"].items():
        print(f"differs: {path}: its actions lead the picture by {lead} rows")
    lead = (
        "cannot tell" if estimate.lead is None else f"actions lead the picture by {estimate.lead} rows, 1 is expected"
    )
    print(f"alignment: {lead} ({estimate.method}: correlation {estimate.correlation:.2f}, "
          f"confidence {estimate.confidence:.0%}, {estimate.changes} changes)")  # fmt: skip
    print(f"verdict: {report['verdict']}")


if __name__ == "__main__":
    command_line.run(main, build_parser())
