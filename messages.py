"""What travels between the page and the server: small JSON texts in, JSON texts and pictures with a short header out.

Whatever a client sends is checked here, to the type and range of every field; nothing of it is trusted further on.
Knows no sockets and no games. `assets/play.js` is the other end.
"""

import json
import math
import struct
import time
from dataclasses import dataclass, field

MAX_TEXT_CHARS = 4096
MAX_BUTTONS = 32
MAX_NAME_CHARS = 60
LARGEST = 2**31 - 1
MESSAGES_PER_S, MESSAGE_BURST = 240.0, 480.0  # a page sends an answer per frame and a few inputs between them
# What a message takes of its player's allowance where that is more than 1: it holds the engine up, or starts something.
COSTS = {"save": 60, "load": 60, "record": 40, "beside": 60, "resync": 30, "restart": 4, "rewind": 4}
MALFORMED_ALLOWED = 20
SEND_S = 60.0  # a page that takes nothing for so long has gone, whatever its machine says

FRAME, SAVE = 1, 2  # the first byte of a binary message
# kind, whether a picture beside it follows, action, timeline, frame, input, engine ms, real-time factor; little-endian
FRAME_HEADER = struct.Struct("<BBHIIIff")
BESIDE_HEADER = struct.Struct("<Iff")  # after it: bytes of the dream's picture, its PSNR, the still picture's
COMPANIONS = ("nothing", "game", "episode", "keys")  # "keys": of an episode, in the game


class Malformed(Exception):
    """A message that no page of ours sends."""


@dataclass(frozen=True)
class Message:
    """A checked message of a client: its type and its fields, all of them of the types that FIELDS names."""

    type: str
    fields: dict[str, object]

    def __getitem__(self, name: str) -> object:
        return self.fields[name]


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise Malformed("expected a whole number")
    return value


def _number(value: object) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise Malformed("expected a finite number")
    return float(value)


def _flag(value: object) -> bool:
    if type(value) is not bool:
        raise Malformed("expected true or false")
    return value


def _name(value: object) -> str:
    if type(value) is not str or len(value) > MAX_NAME_CHARS or not value.isprintable():
        raise Malformed(f"expected at most {MAX_NAME_CHARS} printable characters")
    return value


def _names(value: object) -> tuple[str, ...]:
    if type(value) is not list or len(value) > MAX_BUTTONS:
        raise Malformed(f"expected at most {MAX_BUTTONS} names")
    return tuple(_name(each) for each in value)


def _companion(value: object) -> str:
    if type(value) is not str or value not in COMPANIONS:
        raise Malformed(f"expected one of {', '.join(COMPANIONS)}")
    return value


FIELDS = {
    "input": {"number": _whole, "buttons": _names},
    "seen": {"timeline": _whole, "frame": _whole},
    "pause": {"on": _flag},
    "settings": {"steps": _whole, "guidance": _number, "noise": _whole},
    "restart": {"start": _whole},
    "rewind": {"timeline": _whole, "frame": _whole},
    "save": {"name": _name},
    "record": {"on": _flag, "episode": _flag},
    "beside": {"what": _companion, "episode": _whole},
    "resync": {},
    "agent": {"on": _flag},
}


def _choice(value: object) -> str:
    if value not in ("first", "second"):
        raise Malformed("expected first or second")
    return value


# What the blind test's page sends; nothing of play, as play's pages send nothing of this.
BLIND_FIELDS = {"answer": {"pair": _name, "choice": _choice, "plays": _whole}}


def parse(text: str, known: dict[str, dict] = FIELDS) -> Message:
    """A client's text as a Message of a type in `known`. Raises Malformed for everything else, whatever it is."""
    if len(text) > MAX_TEXT_CHARS:
        raise Malformed(f"longer than {MAX_TEXT_CHARS} characters")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise Malformed("not JSON") from None
    if type(values) is not dict or type(values.get("type")) is not str or values["type"] not in known:
        raise Malformed("no message of a known type")
    fields = known[values["type"]]
    if values.keys() != {"type", *fields}:
        raise Malformed(f"expected the fields {', '.join(fields)}")
    return Message(values["type"], {name: check(values[name]) for name, check in fields.items()})


@dataclass(frozen=True)
class RealPicture:
    """What stands beside a dreamed frame: the real frame of the same moment, and how near the dream is to it.

    psnr_db: of the dreamed frame; NaN once a jump has parted the two.  still_db: of the real frame at the last
    re-sync, held still: what a dream that does not move would have."""

    image: bytes  # a JPEG file
    psnr_db: float
    still_db: float


@dataclass(frozen=True)
class Picture:
    """A drawn frame on its way to a page.

    timeline: counts the jumps (rewind, load, new game), so that a page tells old frames from new ones.  frame: the
    engine's number.  input: the newest input of the player that led to it, 0 for none since the last jump."""

    timeline: int
    frame: int
    input: int
    action: int
    engine_s: float
    real_time_factor: float
    image: bytes  # a JPEG file
    real: RealPicture | None = None

    def packed(self) -> bytes:
        times = (self.engine_s * 1000, self.real_time_factor)
        numbers = (self.action, self.timeline, self.frame, self.input)
        header = FRAME_HEADER.pack(FRAME, self.real is not None, *numbers, *times)
        if self.real is None:
            return header + self.image
        beside = BESIDE_HEADER.pack(len(self.image), self.real.psnr_db, self.real.still_db)
        return header + beside + self.image + self.real.image


def packed_save(contents: bytes) -> bytes:
    """A save file as the page gets it, and gives it back."""
    return bytes([SAVE]) + contents


def unpacked_save(message: bytes) -> bytes:
    """The save file in a client's binary message. Raises Malformed for another kind of message."""
    if not message or message[0] != SAVE:
        raise Malformed("not a save file")
    return message[1:]


@dataclass
class Allowance:
    """How many messages a client may still send: a bucket that refills with time."""

    rate_per_s: float = MESSAGES_PER_S
    burst: float = MESSAGE_BURST
    _left: float = field(default=MESSAGE_BURST, init=False)
    _filled_at_s: float = field(default_factory=time.monotonic, init=False)

    def __post_init__(self) -> None:
        self._left = self.burst

    def take(self, now_s: float | None = None, cost: float = 1.0) -> bool:
        """Whether one more message, of that cost, is allowed at `now_s` (seconds of a monotonic clock)."""
        now_s = time.monotonic() if now_s is None else now_s
        self._left = min(self.burst, self._left + (now_s - self._filled_at_s) * self.rate_per_s)
        self._filled_at_s = now_s
        self._left -= cost
        if self._left < 0:
            self._left = 0.0
            return False
        return True
