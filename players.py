"""The people at the games: each one's own game state, keys, wishes and mailbox, and the seats they sit on.

The server's thread writes keys and wishes, the engine's thread reads them and posts pictures; nothing here queues: of
everything that waits there is at most the newest one. Knows no sockets and no networks. Used by game_loop.py and
play_server.py.
"""

import asyncio
import contextlib
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from torch import Tensor

from companion_state import Beside
from messages import Allowance, Message, Picture
from play_recorder import PlayRecorder

FRAMES_ON_THE_WAY_S = 0.2  # how much play may be under way to a page that has not said it is drawn


@dataclass(frozen=True)
class Settings:
    """How frames are sampled: sampling steps, guidance on the past frames, noise bucket of the context."""

    steps: int
    guidance: float
    noise: int

    @property
    def passes(self) -> int:
        """Of the UNet in a frame."""
        return self.steps * (1 if self.guidance == 1.0 else 2)


@dataclass(frozen=True)
class Moment:
    """One frame of a game: its number, its latent (C, h, w), the action that led to it, and how it was drawn.

    digest: of the drawn frame, see saves.frame_digest; none for what stood before the game began here.
    pose: (4,) it was seen from, of a model with a memory of the map."""

    frame: int
    latent: Tensor
    action: int
    settings: Settings
    digest: str = ""
    pose: Tensor | None = None


class Mailbox:
    """What waits for one connection: the newest picture, the newest letter of each kind.

    `post` and `show` may be called from any thread; `collect` belongs to the connection's own event loop. A picture
    leaves only while fewer than `window` are under way, so a slow reader gets the newest one and none late."""

    def __init__(self, window: int) -> None:
        self.window = window
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._letters: dict[str, dict | bytes] = {}
        self._picture: Picture | None = None
        self._on_the_way: deque[tuple[int, int]] = deque()  # (timeline, frame), at most `window`
        self._lock = threading.Lock()

    def post(self, kind: str, letter: dict | bytes) -> None:
        """Leaves a letter, in place of one of the same kind that was not collected yet."""
        with self._lock:
            self._letters.pop(kind, None)
            self._letters[kind] = letter
        self._wake()

    def show(self, picture: Picture) -> None:
        """Leaves a picture, in place of one that was not collected yet."""
        with self._lock:
            self._picture = picture
        self._wake()

    def seen(self, timeline: int, frame: int) -> None:
        """The page has drawn this picture and with it all that were sent before; others are ignored."""
        with self._lock:
            if (timeline, frame) in self._on_the_way:
                while self._on_the_way.popleft() != (timeline, frame):
                    pass
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the server has ended and closed the loop: nobody collects any more
            self._loop.call_soon_threadsafe(self._ready.set)

    async def collect(self) -> list[dict | bytes]:
        """Waits for something to send: letters, oldest first, then the picture."""
        while True:
            await self._ready.wait()
            self._ready.clear()
            with self._lock:
                found = list(self._letters.values())
                self._letters.clear()
                if self._picture is not None and len(self._on_the_way) < self.window:
                    found.append(self._picture.packed())
                    self._on_the_way.append((self._picture.timeline, self._picture.frame))
                    self._picture = None
            if found:
                return found


@dataclass(eq=False)
class Player:
    """One person's game. `state` and `history` belong to the engine's thread, the rest is guarded by `lock`."""

    settings: Settings
    session: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    lock: threading.Lock = field(default_factory=threading.Lock)
    allowance: Allowance = field(default_factory=Allowance)  # the server's thread; of all connections together
    # ---- the engine's thread
    state: dict[str, Tensor] | None = None  # GameEngine.state(); None: no game begun yet
    history: deque[Moment] = field(default_factory=deque)
    game: int = 0  # counts the games begun or loaded
    timeline: int = 0  # counts all jumps, rewinds too
    save: Future | None = None  # the last one, which is made in another thread
    recordings: int = 0  # made so far
    recorders: dict[str, PlayRecorder] = field(default_factory=dict)  # at work now: of the dream, of the real game
    beside: Beside | None = None  # what was ever asked to stand beside the dream
    frame_s: float = 0.0  # what a frame takes, of late
    rests_until_s: float = 0.0  # no frame before then: the others play
    is_shown: bool = False  # whether the page was sent the frame that the game stands at; a new connection clears it
    # ---- both
    mailbox: Mailbox | None = None  # None: nobody is connected
    is_paused: bool = False
    held: tuple[str, ...] = ()  # buttons down, oldest first
    tapped: tuple[str, ...] = ()  # buttons pressed since the last frame, held or not
    input_number: int = 0  # of the newest input
    led_by: int = 0  # the same, but 0 from a jump until the next input
    wishes: dict[str, Message | bytes] = field(default_factory=dict)  # the newest of each kind
    last_input_s: float = field(default_factory=time.monotonic)
    left_s: float | None = None  # when the connection went

    def press(self, number: int, buttons: tuple[str, ...]) -> None:
        """Takes the buttons that are down now. An input older than the newest one is dropped."""
        with self.lock:
            if number <= self.input_number:
                return
            self.input_number = self.led_by = number
            new = tuple(button for button in buttons if button not in self.held)
            self.tapped = tuple(dict.fromkeys(self.tapped + new))
            self.held = buttons
            self.last_input_s = time.monotonic()

    def pressed(self) -> tuple[tuple[str, ...], int]:
        """(buttons for the next frame, oldest first; number of the input they are of, 0 for none since the last jump).

        What was tapped and let go between two frames counts for this frame, older than what is still down."""
        with self.lock:
            gone = tuple(button for button in self.tapped if button not in self.held)
            self.tapped = ()
            return gone + self.held, self.led_by

    def wish(self, kind: str, wish: Message | bytes) -> None:
        """Asks the engine's thread for something, in place of an older wish of the same kind."""
        with self.lock:
            self.wishes.pop(kind, None)
            self.wishes[kind] = wish
            self.last_input_s = time.monotonic()

    def wish_again(self, kind: str, wish: Message | bytes) -> None:
        """Puts back a wish whose time has not come, unless there is a newer one of its kind."""
        with self.lock:
            self.wishes.setdefault(kind, wish)

    def take_wishes(self) -> dict[str, Message | bytes]:
        """The wishes not taken yet, oldest first."""
        with self.lock:
            wishes, self.wishes = self.wishes, {}
            return wishes

    def note_watching(self) -> None:
        """Somebody looks on while an agent or a recorded episode has the keys, and is not away."""
        with self.lock:
            self.last_input_s = time.monotonic()

    def pause(self, on: bool) -> None:
        with self.lock:
            self.is_paused = on
            self.last_input_s = time.monotonic()

    def let_go(self) -> None:
        """No button is down any more, and no input led to what follows."""
        with self.lock:
            self.held, self.tapped, self.led_by = (), (), 0

    @property
    def is_playing(self) -> bool:
        return self.mailbox is not None and not self.is_paused

    def post(self, kind: str, letter: dict | bytes) -> None:
        mailbox = self.mailbox
        if mailbox is not None:
            mailbox.post(kind, letter)

    def show(self, picture: Picture) -> None:
        mailbox = self.mailbox
        if mailbox is not None:
            mailbox.show(picture)


class Seats:
    """At most `number` players. One whose connection went keeps the seat for `grace_s`, or until somebody needs it."""

    def __init__(self, number: int, settings: Settings, *, grace_s: float = 60.0, idle_s: float = 600.0) -> None:
        self.number, self.grace_s, self.idle_s = number, grace_s, idle_s
        self._settings = settings
        self._players: dict[str, Player] = {}
        self._lock = threading.Lock()

    def players(self) -> list[Player]:
        """Everybody who has a seat, longest seated first."""
        with self._lock:
            return list(self._players.values())

    def sit(
        self, session: str | None, mailbox: Mailbox, greet: Callable[[Player], dict]
    ) -> tuple[Player, Mailbox | None] | None:
        """(player, the mailbox of a connection this one replaces): the session's player, or a new one; None: full.

        greet: the letter that is to reach the page before every other."""
        with self._lock:
            player = self._players.get(session or "")
            if player is None:
                if len(self._players) >= self.number and not self._free_one():
                    return None
                player = Player(self._settings)
                self._players[player.session] = player
            replaced = player.mailbox
            mailbox.post("welcome", greet(player))
            with player.lock:
                player.mailbox, player.left_s, player.is_paused = mailbox, None, False
                player.held, player.tapped, player.input_number, player.led_by = (), (), 0, 0
                player.is_shown = False
                player.last_input_s = time.monotonic()
            return player, replaced

    def _free_one(self) -> bool:
        away = [player for player in self._players.values() if player.mailbox is None]
        if away:
            del self._players[min(away, key=lambda player: player.left_s or 0.0).session]
        return bool(away)

    def leave(self, player: Player, mailbox: Mailbox) -> None:
        """The connection behind `mailbox` has gone; the seat stays taken for a while."""
        with player.lock:
            if player.mailbox is mailbox:
                player.mailbox, player.left_s = None, time.monotonic()
                player.held, player.tapped, player.led_by = (), (), 0

    def release(self, now_s: float | None = None) -> list[Player]:
        """Frees the seats of those who went `grace_s` ago, or did nothing for `idle_s`; returns the latter."""
        now_s = time.monotonic() if now_s is None else now_s
        with self._lock:
            gone = [p for p in self._players.values() if p.left_s is not None and now_s - p.left_s > self.grace_s]
            idle = [p for p in self._players.values() if p.mailbox is not None and now_s - p.last_input_s > self.idle_s]
            for player in gone + idle:
                del self._players[player.session]
        return idle
