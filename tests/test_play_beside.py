"""Promises of the page with something beside the dream, in a real headless Chromium: one pair of hands for both.

The dream is the toy world's square, learned. Beside it stands the toy world itself, so that one can see both squares go
the same way, and real Doom, whose turning keys the square is given.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from play_runs import Serving, next_letter, send, serving, until
from stage_one import parent_of
from test_play_page import SQUARE_X, browser, frame, notice, playing, playwright, pytestmark  # noqa: F401
from toy_dream import learned_toy_world

from real_game import action_rows

REAL_X = SQUARE_X.replace("#dream canvas", "#real canvas")
REAL_SUM = """() => {
  const canvas = document.querySelector("#real canvas");
  return canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.reduce((sum, each) => sum + each);
}"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learned_toy_world(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def toy_server(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """The toy dream, the toy world itself and its recorded episodes."""
    words = ("--env", "toy_world:Square-v0", "--episodes", toy / "play", "--policy", "random")
    tests = {"PYTHONPATH": str(Path(__file__).parent)}
    with serving(toy / "run", *words, cwd=tmp_path_factory.mktemp("work"), extra=tests) as running:
        yield running


@pytest.fixture(scope="module")
def doom_server(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """The toy dream with Doom's turning for its left and right, at 35 tics a second, beside real Doom."""
    folder = tmp_path_factory.mktemp("doom") / "world_model"
    shutil.copytree(toy / "run" / "world_model", folder)
    rows = {row["name"]: row for row in action_rows(["TURN_RIGHT", "TURN_LEFT"])}
    table = [{**rows[name], "id": number} for number, name in enumerate(("NOOP", "TURN_LEFT", "TURN_RIGHT"))]
    config = json.loads((folder / "config.json").read_text())
    config |= {"action_table": table, "tics_per_second": 35.0, "frame_stride": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with serving(folder, "--policy", "random", cwd=tmp_path_factory.mktemp("work")) as running:
        yield running


@pytest.fixture
def page(request: pytest.FixtureRequest, browser: "playwright.Browser") -> Iterator["playwright.Page"]:  # noqa: F811
    """A page of the server that the test names, with an eye on errors of its script."""
    server = request.getfixturevalue(request.param)
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server.address)
    playing(page)
    yield page
    page.close()
    assert not errors


on_toy = pytest.mark.parametrize("page", ["toy_server"], indirect=True)
on_doom = pytest.mark.parametrize("page", ["doom_server"], indirect=True)


def state(page: "playwright.Page", name: str) -> str:
    return page.locator("body").get_attribute(f"data-{name}") or ""


def decibels(page: "playwright.Page") -> float:
    """What the meter shows; 0 while it shows nothing."""
    shown = page.locator("#psnr").inner_text()
    return 0.0 if shown in ("", "–") else float(shown)


def beside_the_game(page: "playwright.Page") -> None:
    page.keyboard.press("b")
    until(lambda: state(page, "beside") == "in_step", "the real game stands beside the dream")
    until(lambda: decibels(page) > 0, "the meter shows a PSNR")


@on_toy
def test_the_same_keys_lead_both_squares_and_the_meter_knows_when_they_are_together(page: "playwright.Page") -> None:
    beside_the_game(page)
    for key, arrived in (("a", lambda x: 0 <= x < 0.3), ("d", lambda x: x > 0.7)):
        page.keyboard.down(key)
        until(lambda arrived=arrived: arrived(page.evaluate(REAL_X)), f"{key} moves the real square there")
        until(lambda arrived=arrived: arrived(page.evaluate(SQUARE_X)), f"{key} moves the dreamed square there")
        page.keyboard.up(key)
    until(lambda: decibels(page) > 18, "together they look alike")
    page.keyboard.press("n")  # the dream begins elsewhere, the real game does not
    page.keyboard.press("y")
    until(lambda: state(page, "beside") == "in_step" and decibels(page) > 18, "a re-sync brings them together")
    page.keyboard.press("b")
    until(lambda: not page.locator("#real").is_visible(), "the dream is alone again")


@on_toy
def test_a_recorded_episode_leads_the_dream_and_a_phone_shows_both_below_each_other(page: "playwright.Page") -> None:
    page.set_viewport_size({"width": 390, "height": 780})
    page.keyboard.press("t")
    lines = page.locator("#episode_list li")
    assert lines.count() == 24 and "episode_000000, 4 s" in lines.first.inner_text()
    lines.first.get_by_role("button", name="episode").click()
    until(lambda: state(page, "beside") == "in_step", "the episode stands beside the dream")
    page.keyboard.press("Escape")
    until(lambda: page.locator("#keys_of").inner_text() == "the recording has the keys", "who has the keys is told")
    dream, real = (page.locator(f"#{name} > canvas").bounding_box() for name in ("dream", "real"))
    assert real["y"] >= dream["y"] + dream["height"] and real["y"] + real["height"] <= 780
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    seen: list[tuple[float, float]] = []

    def is_over() -> bool:
        if state(page, "beside") == "in_step":
            seen.append((page.evaluate(SQUARE_X), page.evaluate(REAL_X)))
        return "is over" in notice(page)

    until(is_over, "the episode comes to its end")
    apart = sorted(abs(dreamed - real) for dreamed, real in seen if dreamed >= 0 and real >= 0)
    assert len(apart) > 5 and apart[len(apart) // 2] < 0.15  # half of the time within a few pixels of 80


@on_doom
def test_real_doom_moves_beside_the_dream_by_key_and_by_agent(page: "playwright.Page") -> None:
    beside_the_game(page)
    standing = page.evaluate(REAL_SUM)
    page.keyboard.down("q")  # turns left in Doom, and with it the square
    until(lambda: state(page, "action") == "TURN_LEFT" and page.evaluate(REAL_SUM) != standing, "Doom turns")
    until(lambda: page.evaluate(SQUARE_X) >= 0, "the dream is drawn")
    page.keyboard.up("q")
    until(lambda: state(page, "action") == "NOOP", "the key is let go")
    page.keyboard.press("g")
    until(lambda: page.locator("#agent").get_attribute("aria-pressed") == "true", "the agent has the keys")
    played: set[str] = set()
    until(lambda: played.add(state(page, "action")) or len(played) == 3, "the agent plays every action, with no key")
    until(lambda: page.locator("#keys_of").inner_text() == "the agent has the keys", "who has the keys is told")
    page.keyboard.press("g")
    until(lambda: state(page, "action") == "NOOP", "the keys are the person's again")
    before = frame(page)
    page.keyboard.press("y")
    until(lambda: frame(page) < before or decibels(page) > 0, "a re-sync begins a new past")


def test_a_client_that_vanishes_ends_its_engine_and_not_the_server(doom_server: Serving) -> None:
    me = doom_server.join()
    next_letter(me, "welcome")
    send(me, type="beside", what="game", episode=0)
    while next_letter(me, "beside")["state"] != "in_step":
        pass
    mine = until(lambda: engines_below(doom_server.process.pid), "the engine runs")
    me.socket.close()  # without a word
    until(lambda: not set(mine) & set(engines_below(doom_server.process.pid)), "the engine has ended")
    assert doom_server.process.poll() is None


def engines_below(process: int) -> list[int]:
    """The Doom engines that a process's children have started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        number = int(path.parent.name)
        try:
            is_engine = b"vizdoom" in path.read_bytes().split(b"\0")[0]
            if is_engine and parent_of(parent_of(number)) == process:
                found.append(number)
        except (OSError, ValueError):
            continue
    return found
