"""Promises of play.py and its server, kept to real clients: newest input, own games, strangers, floods, slowness."""

import random
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from command import refusal, run_script
from play_runs import (
    DEADLINE_S,
    Frame,
    Serving,
    close_code,
    next_frame,
    next_letter,
    next_where,
    receive,
    send,
    serving,
    until,
)
from tiny_models import LEFT, NOOP, RIGHT, tiny_world_model
from websockets.exceptions import ConnectionClosed, InvalidStatus


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "world_model"
    tiny_world_model().save(folder)
    return folder


@pytest.fixture(scope="module")
def server(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Three seats, a model of 10 frames a second."""
    with serving(model_folder, "--max_players", 3, cwd=tmp_path_factory.mktemp("work")) as running:
        yield running


def test_wrong_words_are_one_line_and_the_model_at_hand_is_named(tmp_path: Path) -> None:
    if not has_model_at_hand(tmp_path):
        assert "no model at hand" in refusal("play.py", cwd=tmp_path)
    assert "70000" in refusal("play.py", "--model_folder", made(tmp_path), "--port", 70000, cwd=tmp_path)
    words = {"--num_inference_steps": (65, "1 to 64"), "--guidance_scale": (10.5, "0 to 10")}
    words["--discretized_noise_level"] = (10, "0 to 9")
    for flag, (value, choices) in words.items():  # the limits of the page and of saves
        said = refusal("play.py", "--model_folder", made(tmp_path), "--port", 0, flag, value, cwd=tmp_path)
        assert f"{flag} {value}: choose {choices}" in said
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refusal("play.py", "--model_folder", made(tmp_path), "--port", port, cwd=tmp_path)
        assert str(port) in said and "--port 0" in said
    assert "--max_players" in run_script("play.py", "--help").stdout


@pytest.mark.parametrize(
    "words",
    [("--scenario", "nowhere"), ("--env", "no:Such-v0"), ("--screen_resolution", "RES_1X1", "--scenario", "basic")]
    + [("--policy", "nowhere.zip"), ("--num_inference_steps", "65"), ("--episodes", "nowhere")],
    ids=lambda words: words[0],
)
def test_a_wrong_word_is_refused_before_torch_or_a_policy_is_loaded(
    words: tuple[str, ...], model_folder: Path, tmp_path: Path
) -> None:
    for heavy in ("torch", "stable_baselines3"):
        (tmp_path / f"{heavy}.py").write_text("raise SystemExit('something heavy was imported')\n")
    flags = ("--model_folder", model_folder, "--port", 0, "--no_browser", *words)
    done = run_script("play.py", *flags, cwd=tmp_path, extra={"PYTHONPATH": str(tmp_path)})
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("play.py: ") and words[1].partition(":")[0] in line


def has_model_at_hand(folder: Path) -> bool:
    """Whether this checkout ships a model, or somebody has trained one in it."""
    from command_line import BadInput
    from play import best_model_at_hand

    try:
        return best_model_at_hand(folder).is_dir()
    except BadInput:
        return False


def made(base: Path) -> Path:
    folder = base / "runs" / "some" / "world_model"
    if not folder.exists():
        tiny_world_model().save(folder)
    return folder


def test_without_an_argument_the_newest_run_is_taken(tmp_path: Path) -> None:
    import os

    from play import SHIPPED_MODEL, best_model_at_hand

    old, new = made(tmp_path), tmp_path / "runs" / "other" / "deep" / "world_model"
    tiny_world_model().save(new)
    os.utime(old / "config.json", (1, 1))
    os.utime(new / "config.json", (4_000_000_000, 4_000_000_000))  # newer than any run beside the scripts
    assert best_model_at_hand(tmp_path) == (SHIPPED_MODEL if SHIPPED_MODEL.exists() else new)


def test_the_newest_input_leads_the_next_frames_and_an_older_one_never_does(server: Serving) -> None:
    with server.join() as me:
        greeting = next_letter(me, "welcome")
        assert {each["name"]: each["keys"] for each in greeting["buttons"]} == {"a": ["KeyA"], "d": ["KeyD"]}
        first = next_frame(me)
        assert (first.input, first.action) == (0, NOOP)
        send(me, type="input", number=2, buttons=["d"])
        send(me, type="input", number=1, buttons=["a"])  # late: out of order
        led = next_frame(me, lambda frame: frame.input == 2)
        assert led.action == RIGHT
        assert [next_frame(me).action for _ in range(3)] == [RIGHT] * 3
        send(me, type="input", number=3, buttons=["d", "a"])
        assert next_frame(me, lambda frame: frame.input == 3).action == LEFT
        send(me, type="input", number=4, buttons=[])
        assert next_frame(me, lambda frame: frame.input == 4).action == NOOP


def test_a_tap_shorter_than_a_frame_counts_for_one_frame(server: Serving) -> None:
    with server.join() as me:
        next_frame(me)
        send(me, type="input", number=1, buttons=["d"])
        send(me, type="input", number=2, buttons=[])
        seen = [next_frame(me) for _ in range(8)]
        assert [frame.action for frame in seen].count(RIGHT) == 1
        assert seen[-1].action == NOOP and seen[-1].input == 2


def test_frames_come_in_order_and_a_game_goes_on_after_a_lost_connection(server: Serving) -> None:
    with server.join() as me:
        session = next_letter(me, "welcome")["session"]
        numbers = [next_frame(me).frame for _ in range(6)]
        assert numbers == sorted(set(numbers))
    with server.join(session) as me:
        assert next_letter(me, "welcome")["session"] == session
        assert next_frame(me).frame >= numbers[-1]
    with server.join("no-such-session") as me:
        assert next_letter(me, "welcome")["session"] not in (session, "no-such-session")


def test_rewind_goes_back_and_the_same_keys_give_the_same_pictures_again(server: Serving) -> None:
    with server.join() as me, server.join() as other:
        next_frame(other)
        start = next_frame(me, lambda frame: frame.frame >= 5)
        first = {}
        while len(first) < 5:
            frame = next_frame(me)
            first[frame.frame] = frame.image
        send(me, type="rewind", timeline=start.timeline, frame=start.frame)
        landed = next_frame(me, lambda frame: frame.timeline != start.timeline)
        assert landed.frame == start.frame and landed.input == 0
        again = {}
        while len(again) < 5:
            frame = next_frame(me)
            again[frame.frame] = frame.image
        common = first.keys() & again.keys()
        assert len(common) >= 3 and all(first[number] == again[number] for number in common)
        send(me, type="rewind", timeline=landed.timeline, frame=10**6)
        assert "go back less far" in next_letter(me, "problem")["text"]


def test_a_save_goes_on_where_it_was_made_and_anything_else_is_refused(server: Serving) -> None:
    with server.join() as me:
        next_frame(me, lambda frame: frame.frame >= 3)
        send(me, type="pause", on=True)
        send(me, type="save", name="here")
        save = next_where(me, lambda message: isinstance(message, bytes))
        send(me, type="restart", start=1)
        send(me, type="pause", on=False)
        next_frame(me, lambda frame: frame.frame >= 2)
    with server.join() as other:
        before = next_frame(other)
        other.send(b"\x02" + save)
        landed = next_frame(other, lambda frame: frame.timeline != before.timeline)
        assert landed.frame >= 3
        for broken in (b"\x02", b"\x02" + save[: len(save) // 2], b"\x02" + save.replace(b"checkpoint", b"checkpoinT")):
            other.send(broken)
            assert "no save" in next_letter(other, "problem")["text"]


def test_settings_change_while_playing_and_wrong_ones_are_named(server: Serving) -> None:
    with server.join() as me:
        next_frame(me)
        send(me, type="settings", steps=1, guidance=1.5, noise=2)
        assert next_letter(me, "settings") == {
            "type": "settings",
            "steps": 1,
            "guidance": 1.5,
            "noise": 2,
            "is_accepted": True,
        }
        send(me, type="settings", steps=1, guidance=1.0, noise=10)
        truth = {"type": "settings", "steps": 1, "guidance": 1.5, "noise": 2, "is_refused": True}
        assert next_letter(me, "settings") == truth  # the page has shown what it asked for
        assert "0 to 9" in next_letter(me, "problem")["text"]
        next_frame(me)


def test_a_request_to_terminate_ends_play_as_ctrl_c_does_with_the_films_whole(
    model_folder: Path, tmp_path: Path
) -> None:
    with serving(model_folder, cwd=tmp_path) as running, running.join() as me:
        next_frame(me)
        send(me, type="record", on=True, episode=False)
        next_letter(me, "recording")
        for _ in range(3):
            next_frame(me)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(DEADLINE_S) == 0
        until(lambda: "stopped\n" in running.output, "it says that it ends")
    files = sorted(path.suffix for path in (tmp_path / "recordings").iterdir())
    assert files == [".json", ".webm"]


def test_who_finds_no_seat_is_told_and_a_seat_is_free_again_at_once(server: Serving) -> None:
    players = [server.join() for _ in range(3)]
    for player in players:
        next_frame(player)
    with server.join() as late:
        assert receive(late) == {"type": "full", "seats": 3}
        assert close_code(late) == 4001
    players.pop().close()

    def gets_in() -> bool:
        with server.join() as late:
            return receive(late)["type"] == "welcome"

    until(gets_in, "the seat of a player who left is given to the next one")
    for player in players:
        next_frame(player)
        player.close()


def test_the_same_session_opened_twice_belongs_to_the_newer_one(server: Serving) -> None:
    with server.join() as old:
        session = next_letter(old, "welcome")["session"]
        with server.join(session) as new:
            next_frame(new)
            assert close_code(old) == 4002
            next_frame(new)


@pytest.mark.parametrize("headers", [{"origin": "http://evil.example"}, {"origin": None}])
def test_pages_of_another_origin_are_not_let_in(server: Serving, headers: dict) -> None:
    with pytest.raises(InvalidStatus, match="403"):
        server.join(**headers)


def test_another_sites_name_for_this_machine_is_not_let_in(server: Serving) -> None:
    request = urllib.request.Request(server.address, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request, timeout=60)
    for path in ("../play.py", "..%2fplay.py", "assets/play.js", "play.js/../../play.py"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{server.address}{path}", timeout=60)


def test_other_machines_need_the_token(model_folder: Path, tmp_path: Path) -> None:
    with serving(model_folder, "--host", "0.0.0.0", cwd=tmp_path) as running:
        token = running.address.partition("?token=")[2]
        assert len(token) >= 16
        local = f"127.0.0.1:{running.port}"
        assert urllib.request.urlopen(f"http://{local}/?token={token}", timeout=60).status == 200
        for wrong in ("", "?token=", f"?token={token[:-1]}", f"?token={token}x"):
            with pytest.raises(urllib.error.HTTPError, match="403") as refused:
                urllib.request.urlopen(f"http://{local}/{wrong}", timeout=60)
            assert "token" in refused.value.read().decode()
        from websockets.sync.client import connect

        with pytest.raises(InvalidStatus, match="403"):
            connect(f"ws://{local}/play?token=wrong", origin=f"http://{local}")
        with connect(f"ws://{local}/play?token={token}", origin=f"http://{local}") as me:
            next_frame(me)


# ------------------------------------------------------------------------------------------------ abuse


class Witness(threading.Thread):
    """A well-behaved player that counts its frames in the background."""

    def __init__(self, server: Serving) -> None:
        super().__init__(daemon=True)
        self.frames, self.is_over, self.error = 0, False, None
        self.server = server
        self.start()
        until(lambda: self.frames > 3, "the witness plays")

    def run(self) -> None:
        try:
            with self.server.join() as connection:
                while not self.is_over:
                    self.frames += isinstance(receive(connection), Frame)
        except Exception as error:
            self.error = error

    def rate_hz(self, seconds: float) -> float:
        """Frames per second over the next seconds."""
        before, began_s = self.frames, time.monotonic()
        time.sleep(seconds)
        return (self.frames - before) / (time.monotonic() - began_s)

    def end(self) -> None:
        self.is_over = True
        self.join(60)
        assert self.error is None and not self.is_alive(), self.error


def nonsense(number: int, draw: random.Random) -> str | bytes:
    """A message that no page sends: no JSON, unknown, of wrong types, out of range, out of order, too long."""
    kinds = (
        lambda: "{" * draw.randrange(1, 3000),
        lambda: draw.randbytes(draw.randrange(0, 200)),
        lambda: '{"type":"input","number":-1,"buttons":[]}',
        lambda: f'{{"type":"input","number":{10**30},"buttons":["a"]}}',
        lambda: '{"type":"input","number":1,"buttons":{"a":1}}',
        lambda: '{"type":"rewind","timeline":0,"frame":99999}',
        lambda: '{"type":"seen","timeline":77,"frame":123456}',
        lambda: '{"type":"settings","steps":NaN,"guidance":Infinity,"noise":1}',
        lambda: '{"type":"save","name":"../../etc/passwd"}',
        lambda: '["input"]',
        lambda: '"' + "x" * 5000 + '"',
        lambda: b"\x02" + draw.randbytes(3000),
    )
    return kinds[number % len(kinds)]()


def vandalise(server: Serving, messages: int, seed: int) -> int:
    """Sends nonsense as fast as it goes, with a new connection whenever the server has had enough; how many it took."""
    draw, sent, connections = random.Random(seed), 0, 0
    while sent < messages:
        connections += 1
        with suppress(ConnectionClosed, ConnectionError, EOFError), server.join() as connection:
            for _ in range(500):
                connection.send(nonsense(sent, draw))
                sent += 1
    return connections


@pytest.mark.slow
@pytest.mark.timed
def test_ten_thousand_bad_messages_neither_crash_nor_fill_the_memory_nor_slow_the_others(server: Serving) -> None:
    witness = Witness(server)
    vandalise(server, 1000, seed=0)
    usual_hz, used_mib = witness.rate_hz(3), server.resident_mib()
    before, began_s = witness.frames, time.monotonic()
    assert vandalise(server, 10_000, seed=1) > 10  # the server did close such connections
    rate_hz = (witness.frames - before) / (time.monotonic() - began_s)
    grown_mib = server.resident_mib() - used_mib
    print(f"usual {usual_hz:.1f} Hz, meanwhile {rate_hz:.1f} Hz, grown {grown_mib:.1f} MiB")
    assert rate_hz > usual_hz / 2
    assert grown_mib < 100
    witness.end()


@pytest.mark.slow
@pytest.mark.timed
def test_twenty_reconnects_a_second_a_vanishing_client_and_an_oversized_message_harm_nobody(server: Serving) -> None:
    witness = Witness(server)
    usual_hz, used_mib = witness.rate_hz(3), server.resident_mib()
    before, began_s = witness.frames, time.monotonic()
    for number in range(100):
        connection = server.join()
        if number % 3 == 0:
            connection.close()
        else:
            connection.socket.close()  # vanishes without a word
    took_s = time.monotonic() - began_s
    rate_hz = (witness.frames - before) / took_s
    assert 100 / took_s >= 20
    with server.join() as me, suppress(ConnectionError):
        with suppress(ConnectionClosed):
            me.send(b"\x02" + bytes(64 * 2**20))
        assert close_code(me) in (1009, 1006)
    print(f"usual {usual_hz:.1f} Hz, meanwhile {rate_hz:.1f} Hz, {(server.resident_mib() - used_mib):.1f} MiB more")
    assert rate_hz > usual_hz / 2
    assert server.resident_mib() - used_mib < 150
    witness.end()


@pytest.mark.slow
@pytest.mark.timed
def test_a_client_that_never_reads_and_answers_without_end_harms_nobody(server: Serving) -> None:
    """Its socket is full after a moment: what it is sent must not pile up, nor wait for it."""
    witness = Witness(server)
    usual_hz, used_mib = witness.rate_hz(3), server.resident_mib()
    before, began_s = witness.frames, time.monotonic()
    with suppress(ConnectionClosed, ConnectionError, EOFError, TimeoutError), server.join() as deaf:
        for number in range(600):
            send(deaf, type="seen", timeline=1, frame=number)
            time.sleep(1 / 150)
    rate_hz = (witness.frames - before) / (time.monotonic() - began_s)
    grown_mib = server.resident_mib() - used_mib
    print(f"usual {usual_hz:.1f} Hz, meanwhile {rate_hz:.1f} Hz, grown {grown_mib:.1f} MiB")
    assert rate_hz > usual_hz / 2
    assert grown_mib < 50
    witness.end()


def test_who_asks_for_saves_without_end_is_shown_out(server: Serving) -> None:
    with server.join() as greedy:
        next_frame(greedy)
        with suppress(ConnectionClosed):
            for _ in range(200):
                send(greedy, type="save", name="again")
        assert close_code(greedy) == 1008


def test_a_slow_reader_gets_the_newest_frame_and_no_late_ones(server: Serving) -> None:
    with server.join() as slow, server.join() as quick:
        first = next_frame(slow)
        unread = [receive(slow, is_seen=False) for _ in range(2)]  # what may be under way: two frames at this rate
        assert all(isinstance(each, Frame) for each in unread)
        begun = next_frame(quick).frame
        next_frame(quick, lambda frame: frame.frame > begun + 12)  # meanwhile a second and more goes by
        send(slow, type="seen", timeline=unread[-1].timeline, frame=unread[-1].frame)
        following = next_frame(slow)
        assert following.frame - unread[-1].frame > 8
        assert first.frame < unread[0].frame < unread[1].frame
