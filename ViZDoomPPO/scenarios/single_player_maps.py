"""Drawings of our maps for one player: doors that open with USE, weapons, monsters, a secret place, an exit.

Letters are rooms, digits doors (each an area of its own) and signs solid blocks. `build_map.py` writes the .wad files.
"""

from text_map import DOOR, EXIT, SINGLE_PLAYER_START, Area, Drawing

THINGS = {  # mark in the plan -> thing number of the engine
    "@": SINGLE_PLAYER_START,
    "z": 3004,  # zombie with a pistol
    "g": 9,  # zombie with a shotgun
    "i": 3001,  # serpentipede, throws fire
    "w": 3002,  # flesh worm, bites
    "2": 2001,  # shotgun
    "3": 2002,  # chaingun
    "4": 2003,  # rocket launcher
    "c": 2007,  # clip
    "b": 2048,  # box of bullets
    "s": 2008,  # shells
    "S": 2049,  # box of shells
    "R": 2046,  # box of rockets
    "+": 2012,  # medikit
    "-": 2011,  # stimpack
    "v": 2014,  # health bonus, an item to the engine
    "h": 2015,  # armor bonus, likewise
    "a": 2018,  # green armor
    "A": 2019,  # blue armor
    "B": 2023,  # berserk pack, an item
    "t": 85,  # tech lamp
    "l": 2028,  # floor lamp
    "o": 2035,  # barrel
}


def door(name: str, picture: str, floor: str, floor_units: int = 0) -> Area:
    """A door that shows `picture` on both sides; it rises until just below the lower neighbour's ceiling."""
    return Area(name, "DOORTRAK", floor, "FLAT20", floor_units, floor_units, light=176, riser=picture, use=DOOR)


# A hall, a guard room with weapons, a big yard with a hidden closet, stores, quarters and the way out.
OUTPOST_PLAN = """
    H.H.H.H.Ht    GlG.G2GsG.    YtY.Y.Y.Y.Y.Y.YtY.    S+S.SbS.S3
    H.H.H.H.H.    G.GzG.G.G.    Y.Y.#.YiY.Y.#.Y.Y.    S.SiS.S.SS
    H.H@HvHvH.1.1.G.GvG.G.G.2.2.Y.YzY.Y.YvY.YvY.Y.3.3.S.S.S.SzS.
    H.H.H.H.H.1.1.G.G.G.G.G.2.2.YhY.Y.Y.Y.YgY.Y.Y.3.3.S.S.ShS.S.
    H.H.H.HcH.    G.G.GaG.Gs    Y.Y.#.Y.YwY.#.Y.Y.    SoS.S.S.So
    HtH.H.H.H.    GlG.G.GcG.    YtY.Y.Y.YvY.Y.YtY.    SoS.S+S.Sl
                                        5.5.            4.4.
                                        5.5.            4.4.
                                    KBK.K.K4          Q.Q.QvQ.
                                    KRK.K.KA          QlQ.Q.Ql
                                                      Q.QwQiQ.
                                                      Q-Q.Q.Q+
                                                        X.X.
"""
OUTPOST_AREAS = {
    "H": Area("hall", "STARTAN3", "FLOOR4_8", "CEIL3_5", 0, 144, 208, accent="COMPBLUE"),
    "G": Area("guard room", "BRONZE1", "FLOOR0_3", "CEIL5_1", 8, 136, 184, "ffe8c8", accent="BRONZE4"),
    "Y": Area("yard", "STONE2", "RROCK20", "F_SKY1", 0, 224, 224, accent="GRAYVINE"),
    "S": Area("stores", "TEKGREN1", "FLAT14", "CEIL5_2", 8, 152, 192, "d0ffd0", accent="TEKGREN3"),
    "Q": Area("quarters", "WOOD1", "FLAT5_2", "CEIL1_1", 0, 136, 184, "ffd8b0", accent="WOODMET1"),
    "K": Area("closet", "ROCKRED1", "FLOOR6_1", "RROCK05", 0, 120, 160, "ffb0b0", is_secret=True),
    "1": door("hall door", "BIGDOOR2", "FLOOR4_8"),
    "2": door("yard door", "BIGDOOR6", "FLOOR0_3"),
    "3": door("stores door", "BIGDOOR2", "FLAT14"),
    "4": door("quarters door", "BIGDOOR7", "FLAT5_2"),
    "5": door("hidden door", "GRAYVINE", "RROCK20"),
    "#": Area("pillar", "STONE3"),
    "X": Area("way out", "SW1EXIT", use=EXIT),
}

# The smallest thing to learn with USE: a cabin, its door, a long passage behind it.
ONE_DOOR_PLAN = """
    A.A.  B.B.B.BtB.B.B.B.B.BtB.B.B.B.B.BtB.B.B.B.B.BtB.B.B.B.B.BtB.B.B.B.B.BtB.B.B.B.B.BtB.B.B.B.B.BtB.B.
    A.A@1.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.
    A.A.1.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.B.
    A.A.  B.B.B.BtB.B.B.B.B.BtB.B.B.B.B.BtB.B.B.B.B.BtB.B.B.B.B.BtB.B.B.B.B.BtB.B.B.B.B.BtB.B.B.B.B.BtB.B.
"""
ONE_DOOR_AREAS = {
    "A": Area("cabin", "STARTAN3", "FLOOR4_8", "CEIL3_5", 0, 136, 208),
    "B": Area("passage", "BRONZE1", "FLOOR0_3", "CEIL5_1", 0, 136, 192, "ffe8c8", accent="BRONZE4"),
    "1": door("the door", "BIGDOOR2", "FLOOR4_8"),
}

# The smallest thing to learn with a weapon: a monster on a ledge at the player's left, which neither comes nor goes.
ONE_MONSTER_PLAN = """
      Mw
    A.A.A.
    A.A@A.A.A.A.
    A.A.A.A.A.A.
"""
ONE_MONSTER_AREAS = {
    "A": Area("hall", "STARTAN3", "FLOOR4_8", "CEIL3_5", 0, 144, 208),
    "M": Area("ledge", "BRONZE1", "FLOOR0_3", "CEIL3_5", 48, 144, 224, "ffe8c8"),
}

SINGLE_PLAYER_MAPS = {
    "outpost": Drawing(OUTPOST_PLAN, OUTPOST_AREAS, THINGS),
    "one_door": Drawing(ONE_DOOR_PLAN, ONE_DOOR_AREAS, THINGS),
    "one_monster": Drawing(ONE_MONSTER_PLAN, ONE_MONSTER_AREAS, THINGS),
}
