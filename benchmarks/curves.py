"""Panels of one curve each over the same steps, one below the other. Used by agent_curve.py and training_curve.py."""

from collections.abc import Callable, Mapping, Sequence

from PIL import Image, ImageDraw

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 800, 200, 60, 20, 30, 30
INK, GRID, DOT = (40, 40, 40), (225, 225, 225), (190, 40, 40)


def draw(
    rows: Sequence[Mapping[str, float]],
    titles: Mapping[str, str],
    *,
    label: Callable[[Mapping[str, float]], str] = lambda row: "",
    caption: str = "",
    from_zero: bool = True,
) -> Image.Image:
    """A panel for each name in `titles` with a dot for every row that has it and `step`; `label` goes below a dot."""
    picture = Image.new("RGB", (WIDTH, HEIGHT * len(titles)), "white")
    pen = ImageDraw.Draw(picture)
    last_step = max(row["step"] for row in rows)
    for number, (name, title) in enumerate(titles.items()):
        shown = [row for row in rows if name in row]
        values = [row[name] for row in shown]
        top, bottom = number * HEIGHT + TOP, (number + 1) * HEIGHT - BOTTOM
        low, high = min(values + [0.0] * from_zero), max(values)
        spread = high - low or 1.0
        pen.text((LEFT, number * HEIGHT + 8), title, fill=INK)
        for share in (0.0, 0.5, 1.0):
            y = bottom - share * (bottom - top)
            pen.line((LEFT, y, WIDTH - RIGHT, y), fill=GRID)
            pen.text((8, y - 6), f"{low + share * spread:.2f}", fill=INK)
        points = []
        for row in shown:
            x = LEFT + row["step"] / last_step * (WIDTH - LEFT - RIGHT)
            points.append((x, bottom - (row[name] - low) / spread * (bottom - top)))
        pen.line(points, fill=DOT, width=2)
        for (x, y), row in zip(points, shown, strict=True):
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=DOT)
            pen.text((x - 8, bottom + 4), label(row), fill=INK)
        pen.text((WIDTH - 190, bottom + 16), caption, fill=INK)
    return picture
