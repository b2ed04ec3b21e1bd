"""The drawing of our deathmatch map: nine rooms that look different, twelve passages. Used by `build_map.py`."""

from text_map import DEATHMATCH_START, Area, Drawing

ROOMS, PASSAGES = "ABCDEFGHI", "abcdefghijkl"  # other letters are details of rooms

# The floor plan, north up. A cell is two characters: its area (AREAS) and the thing on it (THINGS; "." none).
# Two spaces are rock. Capital letters are rooms, small ones passages and details of rooms, digits solid blocks.
PLAN = """
AkA@A.A.A.A.A-    B.B.B.B.B.B.B.B.Bg    CtC.C.C.C.C.C@Ct
A.A.1.A.1.A.A.    BsB.B2B.B.B.B.B@B.b.b.C.C.n.n.n.n.C.C.
A.A.r.r2r.A.A.avavB.B.B.w.waw.B.B.B.b.b.C-C.n.n.n.n.C.C.
A.A.r.r.r+A.A.a.a.B.B.B.w.w.w.B.B.B.    C.CsC.C.3.C.C.CS
A.1.A.A.A.1.A.    B.B@B.B.B.B.B.BcB.    C.C.n.n.n.n.C.C.
AkA.AcA.A.A@As    BgB.B.B.B.B+B.B.Bg    C@C.n.n.n.n.C.C.
    c.c.                  d.d.          CtCoC.C4C.C.CcCt
    c-c.                  dvdv                e.e.
DfD-D.D.D.Df    E.E.E|E.E.E3E.E-E|E.Er        evev
q.D.D.D.D@D.    E.E.2.E.E.E.E.E.2.E@E.    F.F.F.F.F.F@F.
q.D.D.4.D.D.    E.E.E.E.p.p.p.E.E.E.E.g.g.F3s.FcF.F.s.F.
q.D.D.D.D.D.f.f.E+E.E.E.p.p5p.E.E.E.E.gbg.F.s.F.F.F.s.F.
q.D.D.4.DbD.f.f.E.E.E.E.p.p.prE.E.E.E.    F.s.F.F.F.s.F.
D.D.D.D.D.Dc    E@E.2.E.E.E.E.E.2.E.Ec    F.s.F@F.F.s.F.
DfD.D.q.q.q.    E.E.EsE.E.E.E.E.E.E.E.    FlF.F.F+F.F.Fl
  h.h.                  iviviv                    j.j.
  hsh.                  i.i.i.                    jej.
GdG.G.G.G.G.G.GR    HoH.H.H.H.H.H.Ho    IuI@I.I.I.I.I.Ie
G.y.y.G.G.5.G.G.    H.H@H.H.H.H.HcH.    I.I.6.I.I.6.I.I.
G@G.G.GaG.G.G.G.kvk.H.x.x.H.H.X.H.H.    I.I.I.z.z6I.I.I.
Gcy.y.G.G.5.G+G.kvk.H.H.HrH.H.X.H.H-l.lvIeI.I.zAz.I.I.I.
G.G.G.G.G.G.G.G.    H.H2H.x.H.H.H.H.l.l.I.I.6.I.I.6.I@I.
GdG.G.G.y.y.G@Gd    H-H.H.HsH.H.H@Ho    IuI.I.I.I.I.IuI-
"""

AREAS = {
    # nine rooms
    "A": Area("library", "PANEL1", "FLAT5_1", "CEIL1_1", 16, 160, 184, "ffe8c8", accent="PANRED"),
    "B": Area("courtyard", "GSTVINE1", "RROCK20", "F_SKY1", 0, 256, 232, accent="GSTLION"),
    "C": Area("reactor", "TEKGREN1", "FLOOR4_8", "SLIME14", 24, 184, 208, "d0ffd0", accent="TEKGREN3"),
    "D": Area("furnace", "ROCKRED1", "RROCK05", "RROCK04", -16, 160, 168, "ffd0b0"),
    "E": Area("arena", "MARBGRAY", "FLOOR5_2", "FLAT8", 0, 240, 208, accent="BRONZE4"),
    "F": Area("laboratory", "SHAWN2", "FLAT20", "FLAT19", 16, 144, 232, "e0ecff", accent="COMPBLUE"),
    "G": Area("crypt", "BIGBRIK2", "FLAT5_6", "MFLR8_1", -32, 112, 168, "fff0d8", accent="SKSNAKE1"),
    "H": Area("warehouse", "STARTAN3", "FLOOR4_6", "CEIL3_1", 0, 192, 192),
    "I": Area("temple", "ZZWOLF9", "FLOOR5_1", "CEIL4_1", -16, 176, 192, "d8d8ff"),
    # twelve passages
    "a": Area("brick passage", "BRICK7", "FLAT8", "FLAT1_1", 8, 128, 160, "ffe0b0", accent="BRICKLIT"),
    "b": Area("mossy passage", "BROWNGRN", "SLIME13", "CEIL5_3", 12, 128, 144, "e0ffd0"),
    "c": Area("burnt passage", "ASHWALL2", "FLOOR6_2", "MFLR8_4", 0, 112, 128, "ffc8a0"),
    "d": Area("grey gate", "GRAY1", "FLOOR0_5", "FLAT18", 0, 144, 200),
    "e": Area("pipe passage", "PIPEWAL1", "AQF016", "AQF028", 24, 136, 144, "ffe8b0"),
    "f": Area("pink passage", "BRICK12", "AQF048", "AQF025", -8, 120, 176),
    "g": Area("cement passage", "CEMENT1", "AQF018", "FLAT2", 8, 120, 216),
    "h": Area("gut passage", "SKINFACE", "SFLR6_1", "SFLR7_1", -24, 96, 168, "ffb8b8"),
    "i": Area("iron stairs", "SUPPORT3", "AQF003", "CEIL1_2", 0, 128, 168, "ffe0a0"),
    "j": Area("sandstone passage", "TANROCK2", "FLOOR3_3", "FLAT5_5", 0, 128, 184, "fff0c8"),
    "k": Area("dark brick passage", "BIGBRIK1", "RROCK14", "FLAT10", -16, 104, 136, "ffd0a0"),
    "l": Area("jungle passage", "ZIMMER1", "GRASS1", "RROCK19", -8, 128, 168, "d0ffc0"),
    # details
    "r": Area("red carpet", "PANEL1", "FLOOR1_6", "CEIL1_3", 16, 160, 208, "ffe8c8"),
    "w": Area("pond", "GSTVINE1", "FWATER1", "F_SKY1", -24, 256, 240, riser="STONE6"),
    "n": Area("nukage", "TEKGREN1", "NUKAGE1", "GRNLITE1", 0, 200, 216, "90ff90", riser="BRONZE1"),
    "q": Area("lava", "ROCKRED1", "LAVA1", "RROCK04", -32, 160, 240, "ffb080", riser="ROCKRED1"),
    "p": Area("dais", "MARBGRAY", "FLAT9", "F_SKY1", 24, 288, 240, riser="STONE2"),
    "s": Area("light strip", "SHAWN2", "FLAT20", "AQF062", 16, 136, 255, "e0ecff", riser="LITEBLU4"),
    "y": Area("grave", "BIGBRIK2", "FLAT5_4", "MFLR8_1", -12, 112, 184, "fff0d8", riser="STONE2"),
    "x": Area("crate", "STARTAN3", "CRATOP2", "CEIL3_1", 64, 192, 192, riser="CRATE1"),
    "X": Area("steel crate", "STARTAN3", "CRATOP1", "CEIL3_1", 96, 192, 192, riser="CRATE2"),
    "z": Area("altar", "ZZWOLF9", "FLOOR1_1", "FLAT22", -8, 200, 224, "c0c0ff", riser="COMPBLUE"),
    # solid blocks
    "1": Area("bookshelf", "PANBOOK"),
    "2": Area("marble column", "MARBLE3"),
    "3": Area("computer column", "COMPWERD"),
    "4": Area("hot column", "FIREMAG1"),
    "5": Area("stone column", "ZZWOLF1"),
    "6": Area("bronze column", "BRONZE1"),
}

THINGS = {  # mark in the plan -> thing number of the engine
    "@": DEATHMATCH_START,
    "2": 2001,  # shotgun
    "3": 2002,  # chaingun
    "4": 82,  # super shotgun
    "5": 2003,  # rocket launcher
    "6": 2004,  # plasma rifle
    "c": 2007,  # clip
    "b": 2048,  # box of bullets
    "s": 2008,  # shells
    "S": 2049,  # box of shells
    "r": 2010,  # rocket
    "R": 2046,  # box of rockets
    "e": 2047,  # cell
    "+": 2012,  # medikit
    "-": 2011,  # stimpack
    "v": 2014,  # health bonus
    "a": 2018,  # green armor
    "A": 2019,  # blue armor
    "k": 35,  # candelabra
    "g": 45,  # green torch
    "t": 85,  # tech lamp
    "f": 46,  # red torch
    "|": 30,  # green pillar
    "l": 2028,  # floor lamp
    "d": 34,  # candle
    "u": 44,  # blue torch
    "o": 2035,  # barrel
}

DEATHMATCH = Drawing(PLAN, AREAS, THINGS)
