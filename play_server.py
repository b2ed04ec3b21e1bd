"""The play server: one page, its files, and a WebSocket to each player.

Lets in who may come in (door.py), counts and limits what they send, and passes it on to players.py; knows nothing of
models and draws nothing. Nothing a client sends is ever part of a path. Built and run by play.py.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from blind_server import PAGE_FILES as BLIND_FILES
from blind_server import BlindServer
from blind_test import BlindTest
from door import FULL, IDLE, REFUSED, REPLACED, TOO_MUCH, Door
from game_loop import GameLoop
from messages import COSTS, MALFORMED_ALLOWED, SEND_S, Malformed, Message, parse, unpacked_save
from players import FRAMES_ON_THE_WAY_S, Mailbox, Player, Seats

ASSETS = Path(__file__).resolve().parent / "assets"
SCRIPTS = ("play", "play_connection", "play_controls", "play_statistics", "play_real")
PAGE_FILES = {
    "/": ("play.html", "text/html"),
    "/play.css": ("play.css", "text/css"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript") for name in SCRIPTS},
}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self' ws: wss:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address may hold the token
    "Cache-Control": "no-store",
}


class PlayServer:
    """The ASGI application: `app`. greeting: facts of the model that every page is told.

    blind_test: served beside the game where there is one."""

    def __init__(
        self, loop: GameLoop, seats: Seats, door: Door, greeting: dict, blind_test: BlindTest | None = None
    ) -> None:
        self.loop, self.seats, self.door, self.greeting = loop, seats, door, greeting
        self.on_failure: Callable[[], None] = lambda: None  # called once the engine's thread has failed
        self.files = PAGE_FILES if blind_test is None else {**PAGE_FILES, **BLIND_FILES}
        routes: list = [Route(path, self.file) for path in self.files]
        if blind_test is not None:
            routes += BlindServer(blind_test, door).routes
        routes.append(WebSocketRoute("/play", self.play))
        self.app = Starlette(routes=routes, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        housekeeping = asyncio.create_task(self._housekeeping())
        try:
            yield
        finally:
            housekeeping.cancel()

    async def _housekeeping(self) -> None:
        """Once a second: frees seats of those who went or fell asleep, says to the others that the connection stands;
        ends the server when nobody computes."""
        while True:
            await asyncio.sleep(1.0)
            if self.loop.failure is not None:
                self.on_failure()
            for player in self.seats.release():
                player.post("closing", {"type": "closing", "code": IDLE})
            for player in self.seats.players():
                player.post("alive", {"type": "alive"})

    async def file(self, request: Request) -> Response:
        """A page or a file of it; a page only with the token, for it is what asks for the rest."""
        name, media_type = self.files[request.url.path]
        refusal = self.door.refusal(request) if media_type == "text/html" else None
        if refusal:
            return PlainTextResponse(refusal, status_code=403, headers=HEADERS)
        contents = await asyncio.to_thread((ASSETS / name).read_bytes)
        return Response(contents, media_type=media_type, headers=HEADERS)

    # ------------------------------------------------------------------------------------------------ one player

    async def play(self, websocket: WebSocket) -> None:
        """One connection, from the greeting to its end, whichever side that comes from."""
        if self.door.refusal(websocket):
            await websocket.close(REFUSED)
            return
        await websocket.accept()
        mailbox = Mailbox(window=max(2, round(FRAMES_ON_THE_WAY_S / self.loop.period_s)))
        seat = self.seats.sit(websocket.query_params.get("session"), mailbox, self._welcome)
        if seat is None:
            await self._close(websocket, FULL, {"type": "full", "seats": self.seats.number})
            return
        player, replaced = seat
        if replaced is not None:
            replaced.post("closing", {"type": "closing", "code": REPLACED})
        self.loop.wake()
        sender = asyncio.create_task(self._send(websocket, mailbox))
        receiver = asyncio.create_task(self._receive(websocket, player, mailbox))
        try:
            done, _ = await asyncio.wait((sender, receiver), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                code = task.result()
                if code is not None:
                    await self._close(websocket, code)
        finally:
            self.seats.leave(player, mailbox)
            for task in (sender, receiver):
                task.cancel()
            await asyncio.gather(sender, receiver, return_exceptions=True)

    def _welcome(self, player: Player) -> dict:
        settings = {"steps": player.settings.steps, "guidance": player.settings.guidance}
        settings["noise"] = player.settings.noise
        return {"type": "welcome", **self.greeting, "session": player.session, "settings": settings}

    @staticmethod
    async def _close(websocket: WebSocket, code: int, letter: dict | None = None) -> None:
        """Says why and closes; a client that has gone already is no fault."""
        with contextlib.suppress(WebSocketDisconnect, RuntimeError, OSError):
            async with asyncio.timeout(SEND_S):
                if letter is not None:
                    await websocket.send_json(letter)
                if websocket.application_state == WebSocketState.CONNECTED:
                    await websocket.close(code)

    async def _send(self, websocket: WebSocket, mailbox: Mailbox) -> int | None:
        """Sends what comes until the connection ends; returns the code to close it with, None when it is closed."""
        while True:
            for letter in await mailbox.collect():
                try:
                    async with asyncio.timeout(SEND_S):
                        if isinstance(letter, bytes):
                            await websocket.send_bytes(letter)
                        else:
                            await websocket.send_json(letter)
                except (WebSocketDisconnect, RuntimeError, OSError):
                    return None
                if not isinstance(letter, bytes) and letter["type"] == "closing":
                    return int(letter["code"])

    async def _receive(self, websocket: WebSocket, player: Player, mailbox: Mailbox) -> int | None:
        """Takes what a client sends until the connection ends, or the client goes too far: the code to close with."""
        strikes = 0
        while True:
            event = await websocket.receive()
            if event["type"] != "websocket.receive":
                return None
            text, contents = event.get("text"), event.get("bytes")
            try:
                message = None if text is None else parse(text)
                kind = "load" if message is None else message.type
                if not player.allowance.take(cost=COSTS.get(kind, 1)):
                    return TOO_MUCH
                if message is not None:
                    self._take(message, player, mailbox)
                else:
                    player.wish("load", unpacked_save(contents or b""))
                    self.loop.wake()
            except Malformed:
                strikes += 1
                if strikes > MALFORMED_ALLOWED:
                    return TOO_MUCH

    def _take(self, message: Message, player: Player, mailbox: Mailbox) -> None:
        """One checked message of a player."""
        if message.type == "seen":
            mailbox.seen(message["timeline"], message["frame"])
        elif message.type == "input":
            player.press(message["number"], message["buttons"])
        elif message.type == "pause":
            player.pause(message["on"])
            self.loop.wake()
        else:
            player.wish(message.type, message)
            self.loop.wake()
