"""Promises of a sturdy game, counted and not timed: whatever one player does the others get their frames, nothing is
kept of ten thousand messages, and a server that is killed leaves nothing behind."""

import asyncio
import gc
import json
import os
import random
import signal
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

from play_runs import next_letter, send, serving, until
from stage_one import processes_of, still_running
from test_beside import doom_model
from test_play_parts import Box
from test_play_server import nonsense
from tiny_models import tiny_world_model

from engine import GameEngine
from game_loop import GameLoop
from messages import FIELDS, Allowance
from play import listen
from play_server import PlayServer
from players import Player, Seats, Settings

WISHES = {
    "input": {"number": 1, "buttons": ["a"]},
    "pause": {"on": False},
    "settings": {"steps": 1, "guidance": 1.5, "noise": 2},
    "restart": {"start": 1},
    "rewind": {"timeline": 1, "frame": 0},
    "save": {"name": "again"},
    "record": {"on": False, "episode": False},
    "beside": {"what": "game", "episode": 0},
    "resync": {},
    "agent": {"on": True},
}


class Connection:
    """What a client sends, one message after the other, then its end."""

    def __init__(self, messages: list[str | bytes]) -> None:
        self.messages = iter(messages)
        self.taken = 0

    async def receive(self) -> dict:
        message = next(self.messages, None)
        self.taken += message is not None
        if message is None:
            return {"type": "websocket.disconnect"}
        return {"type": "websocket.receive", "bytes" if isinstance(message, bytes) else "text": message}


def table(folder: Path, seats: int) -> tuple[GameLoop, PlayServer]:
    loop = GameLoop(GameEngine(tiny_world_model()), Seats(seats, Settings(1, 1.0, 0)), folder)
    return loop, PlayServer(loop, loop.seats, None, {})


def take(server: PlayServer, player: Player, messages: list[str | bytes]) -> tuple[int | None, int]:
    """A player's connection brings messages: (the code the server closes it with, how many it took)."""
    connection, mailbox = Connection(messages), SimpleNamespace(seen=lambda *_: None)
    return asyncio.run(server._receive(connection, player, mailbox)), connection.taken


def test_in_every_round_of_the_engine_everybody_else_gets_a_frame_whatever_one_player_asks_for(tmp_path: Path) -> None:
    """The flooding player has no limit on messages here: that the engine does little of it is another promise."""
    loop, server = table(tmp_path, seats=3)
    (vandal, _), *others = (loop.seats.sit(None, Box(), vars) for _ in range(3))
    vandal.allowance = Allowance(rate_per_s=0, burst=float("inf"))
    rounds, fulfilled, release, fulfil = 0, [], loop.besides.release, loop._fulfil

    def counted_release(players: list[Player]) -> None:  # the first thing of a round
        nonlocal rounds
        rounds += 1
        fulfilled.append([])
        release(players)

    def counted_fulfil(player: Player, kind: str, wish: object) -> None:
        fulfilled[-1].append(kind)
        fulfil(player, kind, wish)

    loop.besides.release, loop._fulfil, loop.period_s = counted_release, counted_fulfil, 0.0
    assert WISHES.keys() | {"seen"} == FIELDS.keys()
    flood = [json.dumps({"type": kind, **fields}) for kind, fields in WISHES.items()] + [b"\x02no save"]
    asked_for = (WISHES.keys() - {"input", "pause"}) | {"load"}

    def is_through() -> bool:
        assert take(server, vandal, flood * 20)[0] is None
        return rounds >= 60 and asked_for == {kind for kinds in list(fulfilled) for kind in kinds}

    loop.start()
    try:
        until(is_through, "the engine goes on, and does of each kind what it is asked for")
    finally:
        loop.stop()
    assert loop.failure is None
    for player, _ in others:
        assert len(player.mailbox.pictures) == rounds + 1  # the first round shows where a game begins, too
    assert all(len(kinds) == len(set(kinds)) for kinds in fulfilled)  # at most one wish of a kind in a round


def test_of_ten_thousand_bad_messages_over_hundreds_of_connections_nothing_is_kept(tmp_path: Path) -> None:
    loop, server = table(tmp_path, seats=2)
    draw, sent, connections = random.Random(0), 0, 0

    def send_until(goal: int) -> None:
        nonlocal sent, connections
        while sent < goal:
            box = SimpleNamespace(post=lambda *_: None, show=lambda *_: None)
            player, _ = loop.seats.sit(None, box, vars)
            code, taken = take(server, player, [nonsense(sent + number, draw) for number in range(100)])
            assert code == 1008  # the server has had enough
            sent, connections = sent + taken, connections + 1
            if connections % 5 == 0:
                loop.serve(player)
            loop.seats.leave(player, box)

    def kept() -> tuple[int, int]:
        """(bytes, players) in memory once nothing is under way."""
        loop._for_saves.submit(lambda: None).result()
        gc.collect()
        return tracemalloc.get_traced_memory()[0], sum(isinstance(each, Player) for each in gc.get_objects())

    send_until(1000)
    tracemalloc.start()
    try:
        send_until(2000)
        bytes_before, players_before = kept()
        send_until(12_000)
        bytes_after, players_after = kept()
    finally:
        tracemalloc.stop()
    assert connections > 100
    assert bytes_after - bytes_before < 200_000, "of some five megabytes that were sent"
    assert players_after <= players_before


def test_a_killed_server_leaves_no_process_and_no_port_taken(tmp_path: Path) -> None:
    doom_model().save(tmp_path / "world_model")
    mark = os.urandom(8).hex()
    words = ("--policy", "random", "--screen_resolution", "RES_160X120", "--backend", "torch")
    extra = {"GAME_TEST_MARK": mark}
    with serving(tmp_path / "world_model", *words, cwd=tmp_path, extra=extra) as server, server.join() as me:
        next_letter(me, "welcome")
        send(me, type="beside", what="game", episode=0)
        while next_letter(me, "beside")["state"] != "in_step":
            pass
        assert len(processes_of(mark, b"vizdoom")) >= 1 and len(still_running(mark)) >= 3  # server, game, engine
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        until(lambda: not still_running(mark), "every process of it has ended")
        listen("127.0.0.1", server.port).close()
