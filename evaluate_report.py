"""The figures of an evaluation as a text table, each beside its goal. Knows evaluate.py's JSON, and no networks."""

from collections.abc import Iterator
from dataclasses import dataclass

from metrics import ROWS, format_rows

SHOWN_FRAMES = (1, 2, 3, 4, 8, 16, 32, 64)  # of a rollout, where PSNR by frame is printed
PSNR_UNTIL = 64  # frames; beyond, PSNR against another course of the game says nothing


@dataclass(frozen=True)
class Goal:
    """What a world model worth playing reaches on held-out play."""

    name: str
    value: float | None
    least: float | None = None
    most: float | None = None

    @property
    def is_reached(self) -> bool | None:
        """None where it could not be measured."""
        if self.value is None:
            return None
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)

    def line(self) -> str:
        bounds = (("at least", self.least), ("at most", self.most))
        wanted = ", ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
        value = "not measured" if self.value is None else f"{self.value:.3g}"
        verdict = {True: "reached", False: "missed", None: ""}[self.is_reached]
        return f"{self.name:<62} {value:>12}  {wanted:<28} {verdict}".rstrip()


def goals(pieces: dict) -> list[Goal]:
    """Every goal that the finished pieces decide."""
    return [*_picture_goals(pieces), *_rollout_goals(pieces), *_obedience_goals(pieces)]


def _picture_goals(pieces: dict) -> Iterator[Goal]:
    if "ceiling" in pieces:
        yield Goal("autoencoder ceiling, dB", pieces["ceiling"]["whole"]["psnr_db"], least=30.0)
    steps = pieces.get("one_step", {})
    for number, result in steps.items():
        rows = result["rows"]
        sharpness = rows["model"]["detail"] / max(1e-6, rows["ceiling"]["detail"])
        yield Goal(f"one step, {number} sampling steps: detail, of the ceiling's", sharpness, 0.8, 1.2)
    if "4" in steps:
        yield Goal("one step, 4 sampling steps: share of the gap closed", steps["4"]["gap_closed"], least=0.6)
    if {"2", "4"} <= set(steps):
        lost_db = steps["4"]["rows"]["model"]["psnr_db"] - steps["2"]["rows"]["model"]["psnr_db"]
        yield Goal("one step: dB lost at 2 sampling steps against 4", lost_db, most=0.5)


def _rollout_goals(pieces: dict) -> Iterator[Goal]:
    reports = [pieces[name] for name in pieces if name.startswith("rollouts_of_")]
    for report in reports[:1]:
        first = {name: values[:4] for name, values in report["psnr_by_frame"].items()}
        above = [m - max(s, c) for m, s, c in zip(first["model"], first["copy_last"], first["constant"], strict=True)]
        yield Goal("rollout: least dB above freeze-last and constant, frames 1-4", min(above), least=0.0)
    for report in reports:
        name = f"rollout of {report['frames']} frames"
        yield Goal(f"{name}: detail, of the ceiling's", report["detail_to_ceiling"], 0.8, 1.25)
        frechet = report["frechet"]
        yield Goal(f"{name}: Fréchet distance, of real-to-real", frechet and frechet["ratio"], most=2.0)


def _obedience_goals(pieces: dict) -> Iterator[Goal]:
    if "obedience" not in pieces:
        return
    rows = {name: report.get("rows") for name, report in pieces["obedience"].items()}
    turning, walking, firing = (rows.get(name) for name in ("turning", "walking", "firing"))
    yield Goal("left and right turn opposite ways, share", turning and turning["model"]["opposite_share"], least=0.95)
    speed = turning and turning["model"]["px_per_frame"] / max(1e-6, turning["real"]["px_per_frame"])
    yield Goal("shift per frame while turning, of the real game's", speed, 0.75, 1.25)
    yield Goal("forward approaches, share", walking and walking["model"]["forward_share"], least=0.9)
    yield Goal("back recedes, share", walking and walking["model"]["back_share"], least=0.9)
    for name, key in (("fire flashes", "flash"), ("ammunition's digits change with fire", "ammo")):
        yield Goal(f"{name}, more often than idle, of the real game's", _relative(firing, key), least=0.9)


def _relative(rows: dict | None, key: str) -> float | None:
    """How much more often something shows with the key than without it, over the same for real frames."""
    if rows is None:
        return None
    more = {name: rows[name][f"{key}_share"] - rows[name][f"idle_{key}_share"] for name in ("real", "model")}
    return more["model"] / max(1e-6, more["real"])


def report(pieces: dict) -> str:
    """All figures with their companion rows, then the goals."""
    return "\n\n".join([*_sections(pieces), "\n".join(goal.line() for goal in goals(pieces))])


def _sections(pieces: dict) -> Iterator[str]:
    if "ceiling" in pieces:
        lines = [f"{name:<10} {row['psnr_db']:>8.2f} {row['detail']:>7.2f}" for name, row in pieces["ceiling"].items()]
        yield "\n".join(["autoencoder alone", f"{'part':<10} {'PSNR dB':>8} {'detail':>7}", *lines])
    for number, result in pieces.get("one_step", {}).items():
        yield f"one step ahead of recorded history, {number} sampling steps\n{format_rows(result['rows'])}"
    for name in pieces:
        if name.startswith("rollouts_of_"):
            yield _rollout_section(pieces[name])
    for name, result in pieces.get("obedience", {}).items():
        yield _obedience_section(name, result)


def _rollout_section(result: dict) -> str:
    frames = [n for n in SHOWN_FRAMES if n <= min(result["recorded_frames"], PSNR_UNTIL)]
    title = f"{result['rollouts']} rollouts of {result['frames']} frames"
    if result["recorded_frames"] < result["frames"]:
        title += f", the actions of {result['recorded_frames']} recorded ones again and again"
    lines = [title, f"{'PSNR dB, frame':<16}" + "".join(f"{n:>7}" for n in frames)]
    by_frame = result["psnr_by_frame"]
    lines += [f"{name:<16}" + "".join(f"{by_frame[name][n - 1]:>7.2f}" for n in frames) for name in ROWS]
    detail = result["detail"]
    lines.append(
        f"detail: ceiling {detail['ceiling']:.2f}, model {detail['model']:.2f}, "
        f"model to ceiling {result['detail_to_ceiling']:.2f}"
    )
    frechet = result["frechet"]
    if frechet is None:
        lines.append("Fréchet distance: takes play of two files at least")
    else:
        lines.append(
            f"Fréchet distance to other real play: real {frechet['real']:.2f}, ceiling {frechet['ceiling']:.2f}, "
            f"model {frechet['model']:.2f}; {frechet['vectors']} vectors of {frechet['dimensions']} numbers"
            + ("" if frechet["is_enough"] else ", too few to mean much: more --num_rollouts")
        )
    return "\n".join(lines)


def _obedience_section(name: str, result: dict) -> str:
    if "missing" in result:
        return f"{name}: {result['missing']}"
    columns = list(dict.fromkeys(key for row in result["rows"].values() for key in row))
    widths = [max(len(column), 8) for column in columns]
    head = " ".join(f"{column:>{width}}" for column, width in zip(columns, widths, strict=True))
    lines = [f"{name}, from {' + '.join(map(str, result['contexts']))} contexts", f"{'row':<10} {head}"]
    for row, values in result["rows"].items():
        cells = [f"{values[column]:.2f}" if column in values else "" for column in columns]
        lines.append(f"{row:<10} " + " ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))
    return "\n".join(line.rstrip() for line in lines)
