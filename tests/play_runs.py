"""A real play.py in a process of its own, and clients of its WebSocket. Used by the tests only."""

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from command import command_of, environment
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from messages import FRAME, FRAME_HEADER

DEADLINE_S = 120.0
ALIVE = '{"type":"alive"}'


def until(holds: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> object:
    """Asks again and again until the answer is true, and returns it; fails after a deadline that no machine needs."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if answer := holds():
            return answer
        time.sleep(0.05)
    raise AssertionError(f"in {deadline_s:g} s it never was so: {what}")


@dataclass(frozen=True)
class Serving:
    """A running play.py."""

    process: subprocess.Popen
    address: str
    output: list[str]

    @property
    def port(self) -> int:
        return urlsplit(self.address).port

    def resident_mib(self) -> float:
        """Main memory the server holds, MiB; Linux only."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) / 1024

    def join(self, session: str = "", **changes: object) -> ClientConnection:
        """A player's connection, as the page makes it."""
        parts = urlsplit(self.address)
        query = f"{parts.query}&session={session}" if parts.query else f"session={session}"
        options = {"origin": f"http://{parts.netloc}", "max_size": None, "compression": None, "ping_interval": None}
        return connect(f"ws://{parts.netloc}/play?{query}", open_timeout=DEADLINE_S, **{**options, **changes})


@contextmanager
def serving(
    model_folder: Path,
    *words: object,
    port: int = 0,
    cwd: Path | None = None,
    extra: Mapping[str, str] | None = None,
) -> Iterator[Serving]:
    """play.py of that model until the context ends; its output goes on being read. extra: for its environment."""
    command = command_of("play.py", "--model_folder", model_folder, "--port", port, "--no_browser", *words)
    process = subprocess.Popen(
        command, env=environment(extra), cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")), daemon=True)
    reader.start()

    def found() -> str | None:
        assert process.poll() is None, "".join(lines)
        return next((line.split()[2] for line in list(lines) if line.startswith("play at ")), None)

    try:
        yield Serving(process, str(until(found, "play.py prints its address")), lines)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(DEADLINE_S)
        finally:
            process.kill()
            reader.join(DEADLINE_S)


@dataclass(frozen=True)
class Frame:
    """A picture as a client gets it."""

    action: int
    timeline: int
    frame: int
    input: int
    image: bytes


def send(connection: ClientConnection, **message: object) -> None:
    connection.send(json.dumps(message))


def receive(connection: ClientConnection, *, is_seen: bool = True) -> dict | Frame | bytes:
    """The next letter, picture or save file; a picture is acknowledged as the page does it."""
    end, message = time.monotonic() + DEADLINE_S, ALIVE
    while message == ALIVE:  # comes every second, whatever the game does
        message = connection.recv(timeout=max(0.0, end - time.monotonic()))
    if isinstance(message, str):
        return json.loads(message)
    if message[0] != FRAME:
        return message[1:]
    _, _, action, timeline, number, given, _, _ = FRAME_HEADER.unpack(message[: FRAME_HEADER.size])
    if is_seen:
        send(connection, type="seen", timeline=timeline, frame=number)
    return Frame(action, timeline, number, given, message[FRAME_HEADER.size :])


def next_where(connection: ClientConnection, wanted: Callable[[object], bool]) -> dict | Frame | bytes:
    """Reads on until something arrives for which `wanted` holds."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        message = receive(connection)
        if wanted(message):
            return message
    raise AssertionError("what was waited for did not come")


def next_frame(connection: ClientConnection, wanted: Callable[[Frame], bool] = lambda frame: True) -> Frame:
    return next_where(connection, lambda message: isinstance(message, Frame) and wanted(message))


def next_letter(connection: ClientConnection, kind: str) -> dict:
    return next_where(connection, lambda message: isinstance(message, dict) and message["type"] == kind)


def close_code(connection: ClientConnection) -> int:
    """Reads to the end of a connection: the code the server closed it with."""
    try:
        while True:
            connection.recv(timeout=DEADLINE_S)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else 1006
