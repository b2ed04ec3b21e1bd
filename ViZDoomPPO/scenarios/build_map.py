"""Writes our maps and their opponents, .wad files and bots.cfg, from the drawings and the tables.

    python ViZDoomPPO/scenarios/build_map.py

Maps are drawn in `deathmatch_map.py` and `single_player_maps.py`; `text_map.py` makes maps of the drawings.
Needs only the standard library and knows nothing of ViZDoom. The deathmatch WAD also holds a player class for each of
the bots' six levels. The same drawings always give the same bytes.
"""

from dataclasses import dataclass
from pathlib import Path

from deathmatch_map import DEATHMATCH
from single_player_maps import SINGLE_PLAYER_MAPS
from text_map import wad

FOLDER = Path(__file__).parent
WAD_PATH = FOLDER / "deathmatch_simple.wad"
BOTS_PATH = FOLDER / "bots.cfg"


@dataclass(frozen=True)
class BotLevel:
    """One level of the curriculum: rl-doom's speeds and healths, and what else makes a bot able.

    A player who only walks about dies 0.3, 0.3, 0.8, 1.1, 2.0, 2.6 times a minute on levels 0 to 5 (8 games of 90 s
    each, 6 bots). bots.cfg's skill values alone change that by less than chance does. Weapons found on the
    floor would make the weakest deadly, so the damage of every weapon is scaled too."""

    strength: float  # speed and damage dealt; a player's are 1
    health: int  # points at birth; a player has 100
    skill: int  # aiming, perfection, reaction and isp of bots.cfg, 0-100
    weapon: str  # in hand at birth
    ammo: str  # 50 of it


BOT_LEVELS = (
    BotLevel(0.1, 10, 0, "Pistol", "Clip"),
    BotLevel(0.2, 20, 20, "Pistol", "Clip"),
    BotLevel(0.4, 40, 40, "Shotgun", "Shell"),
    BotLevel(0.6, 60, 60, "Shotgun", "Shell"),
    BotLevel(0.8, 80, 80, "Chaingun", "Clip"),
    BotLevel(1.0, 100, 100, "Chaingun", "Clip"),
)
# Red, green and blue, in hexadecimal as the engine reads them.
BOT_COLORS = (
    *("ff ff 00", "ff 40 00", "40 80 ff", "ff ff ff", "c0 00 c0", "00 c0 c0", "50 50 60", "c0 80 40"),
    *("ff 80 c0", "80 ff 80", "80 00 00", "00 00 a0"),
)


def _class_name(level: int) -> str:
    return f"BotLevel{level}"


def build_decorate() -> str:
    """The DECORATE lump: each level's player class, and the lasting power that scales the damage it deals."""
    return "\n".join(
        f"actor {_class_name(level)}Damage : PowerDamage\n{{\n"
        f'  Powerup.Duration 0x7FFFFFFF\n  DamageFactor "normal", {bot.strength}\n}}\n\n'
        f"actor {_class_name(level)} : DoomPlayer\n{{\n"
        f'  Player.DisplayName "{_class_name(level)}"\n'
        f"  Health {bot.health}\n"
        f"  Player.ForwardMove {bot.strength}, {bot.strength}\n"
        f"  Player.SideMove {bot.strength}, {bot.strength}\n"
        f'  Player.StartItem "{bot.weapon}"\n  Player.StartItem "{bot.ammo}", 50\n  Player.StartItem "Fist"\n'
        f'  Player.StartItem "{_class_name(level)}Damage"\n'
        "}\n"
        for level, bot in enumerate(BOT_LEVELS)
    )


def build_mapinfo() -> str:
    """The MAPINFO lump: which player classes exist, and the map's sky."""
    names = ", ".join(f'"{name}"' for name in ("DoomPlayer", *map(_class_name, range(len(BOT_LEVELS)))))
    return f'gameinfo {{ playerclasses = {names} }}\n\nmap MAP01 "Deathmatch Simple"\n{{\n  sky1 = "P-SKY1"\n}}\n'


def build_bots() -> str:
    """bots.cfg: one row per level and colour, named Level<level>-<number>, for the engine's `addbot NAME`."""
    rows = [
        f"{{\n  name Level{level}-{number}\n"
        f"  aiming {bot.skill}\n  perfection {bot.skill}\n  reaction {bot.skill}\n  isp {bot.skill}\n"
        f'  color "{color}"\n  skin base\n  playerclass {_class_name(level)}\n}}\n'
        for level, bot in enumerate(BOT_LEVELS)
        for number, color in enumerate(BOT_COLORS, 1)
    ]
    return "// Written by build_map.py: the bots of the six curriculum levels.\n" + "\n".join(rows)


def build_wad() -> bytes:
    """The deathmatch WAD."""
    map_lumps = [("MAP01", ""), ("TEXTMAP", DEATHMATCH.text_map()), ("ENDMAP", "")]
    return wad([*map_lumps, ("DECORATE", build_decorate()), ("MAPINFO", build_mapinfo())])


def build_single_player_wad(name: str) -> bytes:
    """The WAD of a map for one player."""
    mapinfo = f'map MAP01 "{name}"\n{{\n  sky1 = "P-SKY1"\n}}\n'
    map_lumps = [("MAP01", ""), ("TEXTMAP", SINGLE_PLAYER_MAPS[name].text_map()), ("ENDMAP", "")]
    return wad([*map_lumps, ("MAPINFO", mapinfo)])


def build_all() -> dict[Path, bytes]:
    """Every file this script writes, with its content."""
    files = {WAD_PATH: build_wad(), BOTS_PATH: build_bots().encode("ascii")}
    return files | {FOLDER / f"{name}.wad": build_single_player_wad(name) for name in SINGLE_PLAYER_MAPS}


def main() -> None:
    """Writes them beside this script."""
    for path, content in build_all().items():
        path.write_bytes(content)
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
