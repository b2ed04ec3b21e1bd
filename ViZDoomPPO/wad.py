"""Looks into a WAD, Doom's file of maps: which map it holds, and for how many players. Knows nothing of ViZDoom."""

import re
import struct
from pathlib import Path

from console import BadInput

SINGLE_PLAYER_START, DEATHMATCH_START = 1, 11  # thing numbers
MAP_PARTS = {b"TEXTMAP", b"THINGS"}  # the lump after a map's name


def first_map(wad: Path) -> str:
    """The name of the first map. Raises BadInput when the file is no WAD or holds none."""
    lumps = _lumps(wad)
    for (name, _), (following, _) in zip(lumps, lumps[1:], strict=False):
        if following in MAP_PARTS:
            return name.decode("ascii")
    raise BadInput(f"{wad} holds no map")


def thing_numbers(wad: Path, map_name: str) -> set[int]:
    """The numbers of all things on a map, in any of the engine's three formats; empty when there is no such map."""
    lumps = _lumps(wad)
    names = [name.upper() for name, _ in lumps]
    if map_name.upper().encode() not in names[:-1]:
        return set()
    at = names.index(map_name.upper().encode())
    kind, things = lumps[at + 1]
    if kind == b"TEXTMAP":
        return {int(number) for number in re.findall(rb"\btype\s*=\s*(\d+)\s*;", things)}
    size, type_at = (20, 10) if b"BEHAVIOR" in names[at + 1 : at + 12] else (10, 6)  # Hexen's format, or Doom's
    starts = range(0, len(things) - size + 1, size) if kind == b"THINGS" else ()
    return {struct.unpack_from("<H", things, start + type_at)[0] for start in starts}


def _lumps(wad: Path) -> list[tuple[bytes, bytes]]:
    """(name, content) of every lump."""
    content = wad.read_bytes()
    try:
        magic, count, directory = struct.unpack_from("<4sii", content)
        if magic not in (b"PWAD", b"IWAD"):
            raise BadInput(f"{wad} is not a WAD file")
        entries = [struct.unpack_from("<ii8s", content, directory + 16 * i) for i in range(count)]
    except struct.error as error:
        raise BadInput(f"{wad} is not a whole WAD file ({error})") from error
    return [(name.rstrip(b"\0"), content[start : start + size]) for start, size, name in entries]
