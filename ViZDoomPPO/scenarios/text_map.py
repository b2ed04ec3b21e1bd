"""Turns a drawing of letters into a Doom map: UDMF text, which the engine makes playable without a node builder.

Knows neither a map of ours nor ViZDoom; `build_map.py` holds the drawings. Needs only the standard library. A WAD made
here holds no pictures: textures are Freedoom's, from the WAD inside the `vizdoom` package.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

CELL_UNITS = 64  # a player is 32 wide, 56 high, climbs 24 and runs about 16 a tic
STEP_TEXTURE = "STEP4"
NO_THING = "."
SINGLE_PLAYER_START, DEATHMATCH_START = 1, 11  # thing numbers of the engine
SECRET = 1024  # a sector that counts as a secret once
DOOR, EXIT = "door", "exit"
LINE_SPECIALS = {  # what pressing USE before a line does, in the engine's numbers
    DOOR: {"special": 12, "arg1": 32, "arg2": 150, "repeatspecial": True},  # opens at speed 32, closes after 150 tics
    EXIT: {"special": 243},
}


@dataclass(frozen=True)
class Area:
    """Every cell with one letter: heights in units, Freedoom names, light 0-255, tint of that light as RRGGBB."""

    name: str
    wall: str
    floor: str = ""
    ceiling: str = ""
    floor_units: int = 0
    ceiling_units: int = 0
    light: int = 0
    tint: str = "ffffff"
    accent: str = ""  # a 64-wide texture for every third stretch of wall
    riser: str = ""  # shown where this area stands above or hangs below its neighbour; default: `wall`
    use: str = ""  # what USE does to it: DOOR opens (each door is an area of its own), EXIT ends the game
    is_secret: bool = False

    @property
    def is_solid(self) -> bool:
        """A block nobody can enter: its wall is what its neighbours see. A door has no height either, but opens."""
        return self.floor_units == self.ceiling_units and self.use != DOOR


@dataclass(frozen=True)
class Border:
    """One cell's length between an open area and its neighbour, in plan corners; the front is on the right hand."""

    start: tuple[int, int]
    end: tuple[int, int]
    front: str
    back: str  # "" for a wall
    wall: str  # texture of that wall
    use: str = ""  # what USE does to it

    def turned(self) -> "Border":
        """The same border of two areas, seen from the other."""
        return Border(self.end, self.start, self.back, self.front, self.wall, self.use)


class TextMap:
    """The blocks of a UDMF text map, numbered within their kind; vertices are shared."""

    def __init__(self) -> None:
        self.blocks: dict[str, list[str]] = {kind: [] for kind in ("thing", "vertex", "sector", "sidedef", "linedef")}
        self.vertices: dict[tuple[int, int], int] = {}

    def add(self, kind: str, **values: str | int | float | bool) -> int:
        """Appends one block and returns its number."""
        lines = [f"{name} = {_literal(value)};" for name, value in values.items()]
        self.blocks[kind].append("\n".join([kind, "{", *lines, "}"]))
        return len(self.blocks[kind]) - 1

    def vertex(self, corner: tuple[int, int]) -> int:
        """The number of the vertex at a corner of the plan."""
        if corner not in self.vertices:
            x, y = _units(corner)
            self.vertices[corner] = self.add("vertex", x=x, y=y)
        return self.vertices[corner]

    def text(self) -> str:
        """The TEXTMAP lump."""
        blocks = [block for kind in self.blocks.values() for block in kind]
        return "\n\n".join(['namespace = "zdoom";', *blocks]) + "\n"


@dataclass(frozen=True)
class Drawing:
    """A map as a floor plan, north up. A cell is two characters: its area and the thing on it; two spaces are rock."""

    plan: str
    areas: dict[str, Area]
    things: dict[str, int]  # mark in the plan -> thing number of the engine

    def cells(self) -> dict[tuple[int, int], tuple[str, str]]:
        """(column, row) -> (area letter, thing mark) for every cell that is not rock."""
        cells = {}
        for row, line in enumerate(self.plan.strip("\n").split("\n")):
            for column in range(len(line) // 2):
                letter, mark = line[2 * column : 2 * column + 2]
                if letter != " ":
                    cells[column, row] = (letter, mark)
        return cells

    def open_cells(self) -> dict[tuple[int, int], str]:
        """(column, row) -> area letter where a player can be."""
        return {cell: letter for cell, (letter, _) in self.cells().items() if not self.areas[letter].is_solid}

    def areas_at(self, places: Iterable[tuple[float, float]]) -> set[str]:
        """The letters of the areas in which places of the map (x, y) lie; "" where nobody can be."""
        cells = self.open_cells()
        return {cells.get((int(x // CELL_UNITS), int(-y // CELL_UNITS)), "") for x, y in places}

    def borders(self) -> Iterator[Border]:
        """Every border of an open cell with rock, a solid block or another area; each once, a door at its back."""
        plan, cells = self.cells(), self.open_cells()
        for (column, row), front in cells.items():
            corners = [(column, row), (column + 1, row), (column + 1, row + 1), (column, row + 1)]  # clockwise from NW
            neighbours = [(column, row - 1), (column + 1, row), (column, row + 1), (column - 1, row)]  # N, E, S, W
            for side, neighbour in enumerate(neighbours):
                start, end = corners[side], corners[(side + 1) % 4]  # going clockwise keeps the cell on the right hand
                back = cells.get(neighbour, "")
                if not back:
                    solid = self.areas[plan[neighbour][0]] if neighbour in plan else None
                    wall = solid.wall if solid else _rock_texture(self.areas[front], column, row)
                    yield Border(start, end, front, back, wall, solid.use if solid else "")
                elif back != front and side in (0, 3):  # the neighbour's own N and W sides are our S and E
                    border = Border(start, end, front, back, "", self.areas[back].use or self.areas[front].use)
                    yield border.turned() if self.areas[front].use == DOOR else border

    def text_map(self) -> str:
        """The whole map as UDMF text."""
        text_map = TextMap()
        letters = sorted(letter for letter, area in self.areas.items() if not area.is_solid)
        for letter in letters:
            area = self.areas[letter]
            text_map.add(
                "sector",
                heightfloor=area.floor_units,
                heightceiling=area.ceiling_units,
                texturefloor=area.floor,
                textureceiling=area.ceiling,
                lightlevel=area.light,
                lightcolor=int(area.tint, 16),
                **({"special": SECRET} if area.is_secret else {}),
            )
        for border in self.borders():
            sides = {"sidefront": self._add_side(text_map, border, letters, border.front, border.back)}
            if border.back:
                sides["sideback"] = self._add_side(text_map, border, letters, border.back, border.front)
            v1, v2 = text_map.vertex(border.start), text_map.vertex(border.end)
            looks = {"twosided": True, "dontpegtop": True} if border.back else {"blocking": True}
            if self.areas[border.front].use == DOOR:
                looks["dontpegbottom"] = True  # the walls of a doorway stay while the door rises
            elif border.use == DOOR:
                looks.pop("dontpegtop")  # its picture rises with it
            used = {**LINE_SPECIALS[border.use], "playeruse": True} if border.use else {}
            text_map.add("linedef", v1=v1, v2=v2, **sides, **looks, **used)
        self._add_things(text_map)
        return text_map.text()

    def _add_side(self, text_map: TextMap, border: Border, letters: list[str], own: str, other: str) -> int:
        """One face of a border: a wall, or the parts of a two-sided border above and below the opening."""
        start, end = (border.start, border.end) if own == border.front else (border.end, border.start)
        (x0, y0), (x1, y1) = _units(start), _units(end)
        along = x0 if x1 > x0 else -x0 if x1 < x0 else y0 if y1 > y0 else -y0
        place = {"sector": letters.index(own), "offsetx": int(along) % 256}
        if not other:
            return text_map.add("sidedef", texturemiddle=border.wall, **place)
        face = self.areas[own].riser or self.areas[other].riser
        return text_map.add(
            "sidedef", texturetop=face or self.areas[own].wall, texturebottom=face or STEP_TEXTURE, **place
        )

    def _add_things(self, text_map: TextMap) -> None:
        """Everything the plan marks; every map needs a single-player start, else on the first deathmatch start."""
        cells = self.open_cells()
        numbered = [(cell, self.things[mark]) for cell, (_, mark) in self.cells().items() if mark != NO_THING]
        if SINGLE_PLAYER_START not in {number for _, number in numbered}:
            first_start = next(cell for cell, number in numbered if number == DEATHMATCH_START)
            numbered.insert(0, (first_start, SINGLE_PLAYER_START))
        modes = dict.fromkeys(("skill1", "skill2", "skill3", "skill4", "skill5", "single", "coop", "dm"), True)
        for (column, row), number in numbered:
            x, y = _units((column + 0.5, row + 0.5))
            text_map.add("thing", x=x, y=y, angle=_widest_view(cells, column, row), type=number, **modes)


def _rock_texture(area: Area, column: int, row: int) -> str:
    return area.accent if area.accent and (column + row) % 3 == 1 else area.wall


def _widest_view(cells: dict[tuple[int, int], str], column: int, row: int) -> int:
    """The angle (0 east, 90 north) in which the floor goes on farthest."""
    steps = {0: (1, 0), 90: (0, -1), 180: (-1, 0), 270: (0, 1)}

    def free_cells(angle: int) -> int:
        dx, dy = steps[angle]
        distance = 1
        while (column + dx * distance, row + dy * distance) in cells:
            distance += 1
        return distance

    return max(steps, key=free_cells)


def _units(point: tuple[float, float]) -> tuple[float, float]:
    """Plan (column, row) -> map (x, y); the map's y axis points north."""
    return point[0] * float(CELL_UNITS), 0.0 - point[1] * CELL_UNITS


def _literal(value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)


def wad(lumps: Sequence[tuple[str, str]]) -> bytes:
    """A PWAD of (name, text) lumps: header, lumps, directory. The same lumps always give the same bytes."""
    content, directory = b"", b""
    for name, text in lumps:
        directory += struct.pack("<ii8s", 12 + len(content), len(text), name.encode("ascii"))
        content += text.encode("ascii")
    return struct.pack("<4sii", b"PWAD", len(lumps), 12 + len(content)) + content + directory
