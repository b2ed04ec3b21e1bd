"""The blind test's page and its WebSocket: one pair after the other goes out, one answer on each comes in.

A page is told no more than it must show; which clip is real leaves this process only as a sum over all answers, once
a rater is through. Who comes in is the same Door's business as in play; what is sent is checked and limited as in play.
"""

import asyncio
import contextlib

from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from blind_test import BlindTest
from door import FULL, IDLE, REFUSED, TOO_MUCH, Door
from messages import BLIND_FIELDS, MALFORMED_ALLOWED, SEND_S, Allowance, Malformed, Message, parse

PAGE = "/blind_test"
PAGE_FILES = {
    PAGE: ("blind_test.html", "text/html"),
    "/blind_test.css": ("blind_test.css", "text/css"),
    "/blind_test.js": ("blind_test.js", "text/javascript"),
}
MOST_RATERS = 32  # at once
IDLE_S = 900.0
ANSWERS_PER_S, ANSWER_BURST = 2.0, 10.0  # of one connection; a clip takes longer than that
ALL_ANSWERS_PER_S, ALL_ANSWERS_BURST = 20.0, 100.0  # of everybody


class BlindServer:
    """`routes` for the play server. door: who may come in."""

    def __init__(self, test: BlindTest, door: Door) -> None:
        self.test, self.door = test, door
        self.routes = [WebSocketRoute(f"{PAGE}/rate", self.rate)]
        self._raters = 0
        self._allowance = Allowance(ALL_ANSWERS_PER_S, ALL_ANSWERS_BURST)

    async def rate(self, websocket: WebSocket) -> None:
        """One rater's connection."""
        if self.door.refusal(websocket):
            await websocket.close(REFUSED)
            return
        await websocket.accept()
        code: int | None = FULL
        if self._raters < MOST_RATERS:
            self._raters += 1
            try:
                code = await self._serve(websocket)
            except (WebSocketDisconnect, RuntimeError, OSError):
                code = None  # has gone
            finally:
                self._raters -= 1
        if code is not None:
            with contextlib.suppress(WebSocketDisconnect, RuntimeError, OSError):
                if websocket.application_state == WebSocketState.CONNECTED:
                    await websocket.close(code)

    async def _serve(self, websocket: WebSocket) -> int | None:
        """Until the connection ends: the code to close it with, None when it is closed."""
        rater = self.test.rater(websocket.query_params.get("rater", ""))
        await websocket.send_json({"type": "rater", "rater": rater})
        await self._show_promptly(websocket, rater)
        allowance, strikes = Allowance(ANSWERS_PER_S, ANSWER_BURST), 0
        while True:
            try:
                event = await asyncio.wait_for(websocket.receive(), IDLE_S)
            except TimeoutError:
                return IDLE
            if event["type"] != "websocket.receive":
                return None
            if not allowance.take():
                return TOO_MUCH
            try:
                message = parse(event.get("text") or "", BLIND_FIELDS)
            except Malformed:
                strikes += 1
                if strikes > MALFORMED_ALLOWED:
                    return TOO_MUCH
                continue
            await self._take(websocket, rater, message)

    async def _take(self, websocket: WebSocket, rater: str, message: Message) -> None:
        """Writes an answer down and shows the next pair; where it cannot be written it says so and the pair stays."""
        try:
            if not self._allowance.take():
                raise OSError("too many answers at once; wait a moment")
            choice = message["choice"] == "first"
            await asyncio.to_thread(self.test.answer, rater, message["pair"], choice, message["plays"])
        except OSError as error:
            text = f"Your answer was not kept: {error.strerror or error}. Please give it again."
            await websocket.send_json({"type": "problem", "text": text})
        await self._show_promptly(websocket, rater)

    async def _show_promptly(self, websocket: WebSocket, rater: str) -> None:
        """`_show`; OSError for a page that takes nothing any more."""
        async with asyncio.timeout(SEND_S):
            await self._show(websocket, rater)

    async def _show(self, websocket: WebSocket, rater: str) -> None:
        """Sends the next pair: what it takes to play it, then the films; after the last one the results."""
        clips = self.test.clips
        pair, answered = await asyncio.to_thread(self.test.next_pair, rater)  # it waits for answers being written
        if pair is None:
            everybody, own = self.test.results(), self.test.own_results(rater)
            lines = {"everybody": [str(each) for each in everybody], "own": [str(each) for each in own]}
            await websocket.send_json({"type": "results", **lines})
            return
        letter = {"pair": pair.id, "number": answered + 1, "total": len(clips.pairs), "seconds": pair.seconds}
        letter |= {"frames_per_second": clips.frames_per_second, "width": clips.width, "height": clips.height}
        films = await asyncio.to_thread(clips.path(pair).read_bytes)
        await websocket.send_json({"type": "pair", **letter, "is_swapped": self.test.is_swapped(rater, pair)})
        await websocket.send_bytes(films)
