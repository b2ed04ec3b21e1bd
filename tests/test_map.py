"""Our maps: the committed files are what the drawings give, rooms look different, every place can be reached."""

import re
import struct
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import REPOSITORY
from doom_env import DoomEnv
from wad import DEATHMATCH_START, first_map, thing_numbers

SCENARIOS = REPOSITORY / "ViZDoomPPO" / "scenarios"
sys.path.insert(0, str(SCENARIOS))

import build_map  # noqa: E402
import deathmatch_map  # noqa: E402
import text_map  # noqa: E402
from deathmatch_map import PASSAGES, ROOMS  # noqa: E402
from single_player_maps import SINGLE_PLAYER_MAPS  # noqa: E402

DRAWINGS = {"deathmatch_simple": deathmatch_map.DEATHMATCH, **SINGLE_PLAYER_MAPS}

STEP_UNITS = 24  # what a player climbs
PLAYER_HEIGHT_UNITS = 56


def blocks(kind: str, drawing: text_map.Drawing = deathmatch_map.DEATHMATCH) -> list[dict[str, str]]:
    """The UDMF blocks of one kind, as name -> value text."""
    text = drawing.text_map()
    return [dict(re.findall(r"(\w+) = (.*);", body)) for body in re.findall(rf"\n{kind}\n{{\n(.*?)\n}}", text, re.S)]


def freedoom_names() -> set[str]:
    """Every wall texture and flat of the Freedoom WAD inside the vizdoom package."""
    import vizdoom

    content = (Path(vizdoom.__file__).parent / "freedoom2.wad").read_bytes()
    count, directory = struct.unpack_from("<ii", content, 4)
    entries = [struct.unpack_from("<ii8s", content, directory + 16 * i) for i in range(count)]
    names = [name.rstrip(b"\0").decode().upper() for _, _, name in entries]
    flats = set(names[names.index("F_START") : names.index("F_END")])
    start = entries[names.index("TEXTURE1")][0]
    textures = struct.unpack_from("<i", content, start)[0]
    offsets = struct.unpack_from(f"<{textures}i", content, start + 4)
    return flats | {content[start + o : start + o + 8].rstrip(b"\0").decode().upper() for o in offsets}


def test_committed_files_are_what_the_drawing_gives_byte_for_byte() -> None:
    cure = "run python ViZDoomPPO/scenarios/build_map.py"
    files = build_map.build_all()
    assert {path.name for path in files} == {"bots.cfg", *(f"{name}.wad" for name in DRAWINGS)}
    for path, content in files.items():
        assert path.read_bytes() == content, f"{path.name}: {cure}"


def test_every_room_and_passage_has_textures_and_light_of_its_own() -> None:
    areas = [deathmatch_map.AREAS[letter] for letter in ROOMS + PASSAGES]
    assert set(ROOMS + PASSAGES) <= set(deathmatch_map.DEATHMATCH.open_cells().values()) and len(areas) >= 8
    assert len({area.wall for area in areas}) == len(areas), "two areas share a wall"
    looks = Counter((area.floor, area.ceiling, area.light, area.tint) for area in areas)
    assert max(looks.values()) == 1, looks.most_common(2)


def test_every_texture_is_in_freedoom() -> None:
    known = freedoom_names()
    for letter, area in [pair for drawing in DRAWINGS.values() for pair in drawing.areas.items()]:
        used = {area.wall, area.floor, area.ceiling, area.accent, area.riser, text_map.STEP_TEXTURE} - {""}
        assert used <= known, f"{letter} {area.name}: {used - known}"


@pytest.mark.parametrize("drawing", DRAWINGS.values(), ids=DRAWINGS)
def test_walls_are_closed(drawing: text_map.Drawing) -> None:
    """Every corner of the map joins as many lines that enter an area as leave it, and each line has all it shows."""
    sides, sectors = blocks("sidedef", drawing), blocks("sector", drawing)
    balance: Counter[tuple[str, str]] = Counter()
    for line in blocks("linedef", drawing):
        faces = [("sidefront", "v1", "v2")] + ([("sideback", "v2", "v1")] if "sideback" in line else [])
        for side, start, end in faces:
            sector = sides[int(line[side])]["sector"]
            balance[sector, line[start]] += 1
            balance[sector, line[end]] -= 1
        if "sideback" not in line:
            assert sides[int(line["sidefront"])]["texturemiddle"] and line["blocking"] == "true"
        else:
            for side in ("sidefront", "sideback"):
                assert sides[int(line[side])]["texturetop"] and sides[int(line[side])]["texturebottom"]
    assert not any(balance.values())
    assert len({side["sector"] for side in sides}) == len(sectors), "an area without walls"


@pytest.mark.parametrize("drawing", DRAWINGS.values(), ids=DRAWINGS)
def test_a_player_can_walk_from_any_place_to_any_other(drawing: text_map.Drawing) -> None:
    """All but the tops of crates and ledges: within a step up, with head room, in both directions, doors being open."""
    cells = {cell: drawing.areas[letter] for cell, letter in drawing.open_cells().items()}
    cells = {cell: area for cell, area in cells.items() if not {"crate", "ledge"} & set(area.name.split())}
    first = next(iter(cells))
    reached, border = {first}, [first]
    while border:
        column, row = border.pop()
        for cell in ((column + 1, row), (column - 1, row), (column, row + 1), (column, row - 1)):
            if cell in cells and cell not in reached and _is_open(cells[column, row], cells[cell]):
                reached.add(cell)
                border.append(cell)
    assert reached == set(cells)


def _is_open(one: text_map.Area, other: text_map.Area) -> bool:
    if text_map.DOOR in (one.use, other.use):
        return abs(one.floor_units - other.floor_units) <= STEP_UNITS
    head_room = min(one.ceiling_units, other.ceiling_units) - max(one.floor_units, other.floor_units)
    return abs(one.floor_units - other.floor_units) <= STEP_UNITS and head_room >= PLAYER_HEIGHT_UNITS


def test_the_map_holds_what_a_deathmatch_needs() -> None:
    things = Counter(int(thing["type"]) for thing in blocks("thing"))
    assert things[DEATHMATCH_START] >= 9
    for number in (2001, 2002, 82, 2003, 2004):  # shotgun, chaingun, super shotgun, rocket launcher, plasma rifle
        assert things[number] >= 1
    for number in (2007, 2008, 2010, 2047, 2011, 2012, 2018):  # ammunition of four kinds, health, armor
        assert things[number] >= 1
    marks = [(cell, letter, mark) for cell, (letter, mark) in deathmatch_map.DEATHMATCH.cells().items() if mark != "."]
    assert not [
        mark
        for mark in marks
        if deathmatch_map.AREAS[mark[1]].is_solid or "crate" in deathmatch_map.AREAS[mark[1]].name
    ]
    assert first_map(build_map.WAD_PATH) == "MAP01"
    assert thing_numbers(build_map.WAD_PATH, "map01") == set(things)


@pytest.mark.parametrize(
    ("name", "title"), [("deathmatch_simple", "Deathmatch Simple"), *((name, name) for name in SINGLE_PLAYER_MAPS)]
)
def test_the_engine_loads_the_map_without_a_complaint(
    name: str, title: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the engine writes where it starts
    env = DoomEnv(name, bots=0)
    game = env._configured_game()
    game.set_console_enabled(True)
    game.init()
    game.make_action(env._vectors[0], 10)
    game.close()
    log = capfd.readouterr().out
    assert f" - {title}" in log, "the engine printed nothing to check"
    assert not re.findall(r"(?i).*(?:error|unknown|invalid|not found|missing|unclosed).*", log)
