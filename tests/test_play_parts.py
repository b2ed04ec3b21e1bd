"""Promises of the parts of play, one by one: keys, nearest actions, messages, allowance, seats, history."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from actions import action_table, table_rows
from play_runs import until
from starlette.websockets import WebSocketState
from tiny_models import tiny_world_model

import game_loop
import play_recorder
import play_server
from controls import button_keys, nearest_action
from engine import GameEngine
from game_loop import GameLoop
from messages import Allowance, Malformed, Picture, parse
from play_recorder import PlayRecorder
from play_server import PlayServer
from players import Mailbox, Player, Seats, Settings
from saves import unpack

DOOM = ("ATTACK", "MOVE_FORWARD", "MOVE_LEFT", "MOVE_RIGHT", "MOVE_BACKWARD", "TURN_RIGHT", "TURN_LEFT")
FULL, SEED = (table_rows(action_table(DOOM, which)) for which in ("full", "seed"))


def played(table: list[dict], *pressed: str) -> str:
    """The name of the action that is played; buttons in the order in which they were pressed."""
    return next(row["name"] for row in table if row["id"] == nearest_action(table, pressed))


@pytest.mark.parametrize("which", ["full", "seed"])
def test_every_action_of_a_table_is_played_by_its_own_buttons(which: str) -> None:
    table = {"full": FULL, "seed": SEED}[which]
    for row in table:
        assert nearest_action(table, row["buttons"]) == row["id"]


def test_of_opposites_and_of_forbidden_pairs_the_newest_button_counts() -> None:
    assert played(FULL, "MOVE_LEFT", "MOVE_RIGHT") == "MOVE_RIGHT"
    assert played(FULL, "MOVE_RIGHT", "MOVE_LEFT", "ATTACK") == "ATTACK+MOVE_LEFT"
    assert played(SEED, "MOVE_FORWARD", "ATTACK") == "ATTACK"
    assert played(SEED, "ATTACK", "MOVE_FORWARD") == "MOVE_FORWARD"
    assert played(SEED, "MOVE_LEFT", "MOVE_FORWARD", "TURN_LEFT") == "MOVE_FORWARD+TURN_LEFT"
    assert played(FULL) == played(FULL, "FLY", "DIG") == "NOOP"


def test_doom_has_the_keys_people_expect_and_a_table_keeps_its_own() -> None:
    keys = button_keys(FULL)
    assert keys["MOVE_FORWARD"] == ["KeyW", "ArrowUp"] and keys["TURN_LEFT"] == ["ArrowLeft", "KeyQ"]
    assert keys["ATTACK"] == ["Space", "ControlLeft", "ControlRight"] and keys["TURN_RIGHT"] == ["ArrowRight", "KeyE"]
    with_use = button_keys(table_rows(action_table((*DOOM, "USE"))))
    assert with_use["USE"] == ["KeyE"] and with_use["TURN_RIGHT"] == ["ArrowRight"]
    plain = [{"id": number, "name": f"ACTION_{number}", "buttons": [], "keys": []} for number in range(3)]
    assert list(button_keys(plain)) == ["ACTION_1", "ACTION_2"] and nearest_action(plain, ["ACTION_2"]) == 2


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", '{"type":"fly"}', '{"type":"pause"}', '{"type":"pause","on":1}', "[" * 4000]
    + ['{"type":"pause","on":true,"more":1}', '{"type":"input","number":true,"buttons":[]}', "x" * 5000]
    + ['{"type":"settings","steps":1,"guidance":NaN,"noise":0}', '{"type":"save","name":"a\\u0000b"}']
    + [json.dumps({"type": "input", "number": 1, "buttons": ["a"] * 33})],
)
def test_whatever_no_page_sends_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        parse(text)


def test_messages_arrive_with_their_fields() -> None:
    message = parse('{"type":"input","number":3,"buttons":["a","d"]}')
    assert message.type == "input" and message["number"] == 3 and message["buttons"] == ("a", "d")


def test_an_allowance_is_a_burst_and_then_a_rate() -> None:
    allowance = Allowance(rate_per_s=10, burst=5)
    start_s = allowance._filled_at_s
    assert [allowance.take(start_s) for _ in range(6)] == [True] * 5 + [False]
    assert [allowance.take(start_s + 0.25) for _ in range(3)] == [True, True, False]


MESSAGES = {"load": b"\x02save", "save": '{"type":"save","name":"a"}', "resync": '{"type":"resync"}'}
MESSAGES |= {"record": '{"type":"record","on":true,"episode":true}', "pause": '{"type":"pause","on":true}'}
MESSAGES |= {"beside": '{"type":"beside","what":"game","episode":0}'}


@pytest.mark.parametrize("kind", MESSAGES)
def test_what_holds_the_engine_up_or_starts_something_costs_more_than_a_key(kind: str) -> None:
    """How many of a kind one player may send at once; a new connection brings no new allowance."""
    events = 0

    class Connection:
        async def receive(self) -> dict:
            nonlocal events
            events += 1
            if events % 5 == 0:
                return {"type": "websocket.disconnect"}
            return {"type": "websocket.receive", "bytes" if kind == "load" else "text": MESSAGES[kind]}

    player = Player(Settings(1, 1.0, 0), allowance=Allowance(rate_per_s=0))
    server = SimpleNamespace(loop=SimpleNamespace(wake=lambda: None), _take=lambda *_: None)
    while asyncio.run(PlayServer._receive(server, Connection(), player, None)) is None:
        assert events < 10_000
    taken = events - events // 5 - 1
    assert taken == {"resync": 16, "record": 12, "pause": 480}.get(kind, 8)


def picture(frame: int) -> Picture:
    return Picture(1, frame, 0, 0, 0.0, 1.0, b"jpeg")


def test_a_mailbox_keeps_only_the_newest_picture_and_the_newest_letter_of_a_kind() -> None:
    async def story() -> None:
        mailbox = Mailbox(window=2)
        for frame in (1, 2, 3):
            mailbox.show(picture(frame))
            mailbox.post("settings", {"steps": frame})
        assert await mailbox.collect() == [{"steps": 3}, picture(3).packed()]
        mailbox.show(picture(4))
        assert await mailbox.collect() == [picture(4).packed()]
        for frame in range(5, 100):  # two are under way: nothing leaves until the page has drawn one
            mailbox.show(picture(frame))
        mailbox.seen(1, 77)  # never sent
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(mailbox.collect(), 0.2)
        mailbox.seen(1, 3)
        assert await mailbox.collect() == [picture(99).packed()]

    asyncio.run(story())


def test_a_mailbox_outlives_the_loop_that_collected_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def made() -> Mailbox:
        return Mailbox(window=2)

    mailbox = asyncio.run(made())
    monkeypatch.setattr(type(mailbox._loop), "is_closed", lambda loop: False)  # it closes just after one has looked
    mailbox.post("settings", {})
    mailbox.show(picture(1))


def test_a_page_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck:
        application_state = WebSocketState.CONNECTED

        async def send_json(self, letter: dict) -> None:
            await asyncio.Event().wait()

        send_bytes = close = send_json

    monkeypatch.setattr(play_server, "SEND_S", 0.01)

    async def story() -> None:
        for letter in ({"type": "settings"}, picture(1)):
            mailbox = Mailbox(window=2)
            mailbox.post("a", letter) if isinstance(letter, dict) else mailbox.show(letter)
            assert await asyncio.wait_for(PlayServer._send(None, Stuck(), mailbox), 60) is None
        await asyncio.wait_for(PlayServer._close(Stuck(), 4001, {"type": "full"}), 60)

    asyncio.run(story())


def test_seats_are_kept_for_a_while_given_to_who_needs_them_and_taken_from_sleepers() -> None:
    async def story() -> None:
        seats = Seats(2, Settings(1, 1.0, 0), grace_s=60, idle_s=600)
        boxes = [Mailbox(2) for _ in range(4)]
        greet = vars
        first, _ = seats.sit(None, boxes[0], lambda player: {"session": player.session})
        second, _ = seats.sit(None, boxes[1], lambda player: {"session": player.session})
        assert seats.sit(None, boxes[2], greet) is None
        seats.leave(first, boxes[0])
        assert seats.sit(first.session, boxes[0], greet)[0] is first
        seats.leave(first, boxes[0])
        third, replaced = seats.sit(None, boxes[2], greet)
        assert seats.players() == [second, third] and replaced is None
        assert seats.release(second.last_input_s + 599) == [] and len(seats.players()) == 2
        seats.leave(third, boxes[2])
        assert seats.release(third.left_s + 61) == [] and seats.players() == [second]
        assert seats.release(second.last_input_s + 601) == [second] and seats.players() == []

    asyncio.run(story())


class Box:
    """A mailbox that keeps all it is given."""

    def __init__(self) -> None:
        self.pictures, self.letters = [], []

    def show(self, picture: Picture) -> None:
        self.pictures.append(picture)

    def post(self, kind: str, letter: object) -> None:
        self.letters.append((kind, letter))


def test_two_players_on_one_engine_get_the_frames_each_would_get_alone(tmp_path: Path) -> None:
    def pictures(sessions: list[str]) -> list[list[Picture]]:
        settings = Settings(2, 1.0, 0)
        loop = GameLoop(GameEngine(tiny_world_model()), Seats(4, settings), tmp_path)
        players = [Player(settings, session=session, mailbox=Box()) for session in sessions]
        for number in range(1, 6):
            for player in players:
                player.press(number, ("d",) if player.session == "one" else ("a",))
                loop.serve(player)
                player.press(100 + number, ())
        return [[each.image for each in player.mailbox.pictures] for player in players]

    alone = pictures(["one"])[0]
    one, two = pictures(["one", "two"])
    assert len(one) == 6 and one == alone and one[1:] != two[1:]


def test_a_loaded_save_plays_the_same_frames_on_with_the_settings_it_was_made_with(tmp_path: Path) -> None:
    def table(name: str) -> tuple[GameLoop, Player]:
        loop = GameLoop(GameEngine(tiny_world_model()), Seats(4, Settings(2, 1.0, 0)), tmp_path)
        until(loop._has_ids, "saves can be loaded at once")
        return loop, Player(Settings(2, 1.0, 0), session=name, mailbox=Box())

    loop, player = table("one")
    player.settings = Settings(1, 1.5, 2)
    for _ in range(6):
        loop.serve(player)
    contents = loop.saved(player, "here")()
    player.press(1, ("d",))
    for _ in range(4):
        loop.serve(player)
    other_loop, other = table("two")
    other.wish("load", contents)
    other.pause(True)
    other_loop.serve(other)
    other.pause(False)
    other.press(1, ("d",))
    for _ in range(4):
        other_loop.serve(other)
    assert other.settings == Settings(1, 1.5, 2)
    assert [each.image for each in other.mailbox.pictures[-4:]] == [each.image for each in player.mailbox.pictures[-4:]]
    assert not [letter for kind, letter in other.mailbox.letters if kind == "problem"]
    log = unpack(contents, loop.engine, loop.checkpoint).log
    assert log[-1][:5] == (6, 0, 1, 1.5, 2) and [row.frame for row in log] == list(range(-3, 7))
    assert [bool(row.digest) for row in log] == [False] * 4 + [True] * 6
    loop.drawn_by = {**loop.drawn_by, "precision": "bfloat16"}
    elsewhere = loop.saved(player, "there")()
    other.wish("load", elsewhere)
    other_loop.serve(other)
    assert "approximate" in dict(other.mailbox.letters)["problem"]["text"]


def test_who_takes_a_seat_while_a_picture_is_on_its_way_to_the_old_page_gets_it_too(tmp_path: Path) -> None:
    settings = Settings(1, 1.0, 0)
    loop = GameLoop(GameEngine(tiny_world_model()), Seats(1, settings), tmp_path)
    player, _ = loop.seats.sit(None, Box(), vars)
    new = Box()

    class Old(Box):
        def show(self, picture: Picture) -> None:
            loop.seats.sit(player.session, new, vars)

    player.mailbox = Old()
    for _ in range(2):
        loop.serve(player)
    assert new.pictures[0].input == 0 and "jumped" in dict(new.letters)  # else the page takes no picture for its own


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk that takes nothing until the event is set."""
    ready, film = threading.Event(), PlayRecorder._film
    monkeypatch.setattr(PlayRecorder, "_film", lambda recorder, frame: (ready.wait(), film(recorder, frame)))
    yield ready
    ready.set()


def test_a_player_has_so_many_recordings_and_few_at_work_at_once(
    tmp_path: Path, disk: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(game_loop, "MOST_RECORDINGS", 6)
    loop = GameLoop(GameEngine(tiny_world_model()), Seats(2, Settings(1, 1.0, 0)), tmp_path)

    def refusals(player: Player, wishes: int) -> list[str]:
        player.mailbox.letters.clear()
        for _ in range(wishes):
            for on in ("true", "false"):
                player.wish("record", parse(f'{{"type":"record","on":{on},"episode":false}}'))
                loop.serve(player)
        return [letter["text"] for kind, letter in player.mailbox.letters if kind == "problem"]

    me, other = (Player(Settings(1, 1.0, 0), mailbox=Box()) for _ in range(2))
    assert refusals(me, 5) == ["earlier recordings are still being written; try again in a while"]
    assert refusals(other, 1) == []
    disk.set()
    for _, future in loop._unfinished:
        future.result(60)
    (said,) = refusals(me, 3)
    assert said.startswith("6 recordings are the most of one visit")
    loop._finish_recordings()
    assert len(list(tmp_path.glob("*.webm"))) == 7


def test_a_recording_ends_with_a_word_where_it_is_too_long_or_the_disk_too_slow(
    tmp_path: Path, disk: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = GameLoop(GameEngine(tiny_world_model()), Seats(2, Settings(1, 1.0, 0)), tmp_path)

    def recorded(frames: int) -> str:
        player = Player(Settings(1, 1.0, 0), mailbox=Box())
        player.wish("record", parse('{"type":"record","on":true,"episode":false}'))
        for _ in range(frames):
            loop.serve(player)
        assert player.recorders == {}
        disk.set()
        loop._finish_recordings()
        disk.clear()
        return dict(player.mailbox.letters)["recording"]["text"]

    with monkeypatch.context() as patch:
        patch.setattr(play_recorder, "MOST_WAITING_BYTES", 3 * 60 * 80 * 3)
        said = recorded(4)
    assert said.startswith("Recorded 3 frames: ") and said.endswith("the disk was too slow to go on")
    monkeypatch.setattr(play_recorder, "LONGEST_S", 0.6)
    said = recorded(6)
    assert said.startswith("Recorded 6 frames: ") and said.endswith("0.01 minutes at most")


def test_nothing_is_recorded_on_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = GameLoop(GameEngine(tiny_world_model()), Seats(2, Settings(1, 1.0, 0)), tmp_path / "not" / "there")
    player = Player(Settings(1, 1.0, 0), mailbox=Box())
    monkeypatch.setattr(game_loop, "disk_usage", lambda folder: SimpleNamespace(free=10**9 if folder.exists() else 0))
    player.wish("record", parse('{"type":"record","on":true,"episode":false}'))
    loop.serve(player)
    assert "nearly full" in dict(player.mailbox.letters)["problem"]["text"] and player.recorders == {}
    assert len(player.mailbox.pictures) == 2, "play goes on"


@pytest.mark.parametrize("heavy", [1, 2])
def test_players_whose_settings_take_far_longer_let_the_others_play_meanwhile(tmp_path: Path, heavy: int) -> None:
    loop = GameLoop(GameEngine(tiny_world_model()), Seats(3, Settings(1, 1.0, 0)), tmp_path)
    players = [loop.seats.sit(None, Box(), vars)[0] for _ in range(1 + heavy)]
    for player in players[1:]:
        player.settings = Settings(32, 2.0, 0)  # 64 passes a frame instead of one
    loop.period_s = 0.0
    loop.start()
    try:
        until(lambda: len(players[1].mailbox.pictures) >= 8, "the slow one plays too")
    finally:
        loop.stop()
    quick, *slow = (len(player.mailbox.pictures) for player in players)
    assert loop.failure is None and quick > 3 * max(slow), (quick, slow)


def test_nobody_rests_for_another_with_the_same_settings_however_slow_the_machine_was_for_them(tmp_path: Path) -> None:
    loop = GameLoop(GameEngine(tiny_world_model()), Seats(2, Settings(1, 1.0, 0)), tmp_path)
    quick, slow = (loop.seats.sit(None, Box(), vars)[0] for _ in range(2))
    for _ in range(3):
        loop.serve(quick)
        slow.frame_s = 100 * quick.frame_s
        loop.serve(slow)
    assert len(slow.mailbox.pictures) == len(quick.mailbox.pictures) == 4
    for settings, rests in ((Settings(1, 2.0, 0), False), (Settings(4, 2.0, 0), True)):
        slow.settings, slow.frame_s = settings, 100 * quick.frame_s
        loop.serve(slow)
        assert (slow.rests_until_s > 0) is rests


def test_the_history_is_bounded(tmp_path: Path) -> None:
    settings = Settings(1, 1.0, 0)
    loop = GameLoop(GameEngine(tiny_world_model()), Seats(1, settings), tmp_path)
    loop.history_frames = 8
    player = Player(settings, mailbox=Box())
    for _ in range(12):
        loop.serve(player)
    assert [moment.frame for moment in player.history] == list(range(5, 13))
    assert player.history[0].latent.untyped_storage().nbytes() == 4 * 4 * 8 * 10  # one frame's, not the window's
