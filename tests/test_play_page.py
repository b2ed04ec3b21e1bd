"""Promises of the play page, in a real headless Chromium: keys move the picture, time goes back, games are kept.

The game is the toy world's square, learned; where there is no Chromium these tests are skipped and say so."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from actions import action_table, table_rows
from play_runs import Serving, next_frame, next_letter, send, serving, until
from tiny_models import tiny_world_model
from toy_dream import learned_toy_world

from messages import SAVE

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium here; apt-get install chromium runs the tests of the page"
    ),
]

# Where the square is, 0 at the left edge and 1 at the right one: only the square is green.
SQUARE_X = """() => {
  const canvas = document.querySelector("#dream canvas");
  const { data, width, height } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let sum = 0, weighted = 0;
  for (let i = 0; i < width * height; i++) {
    const green = Math.max(0, data[4 * i + 1] - 100);
    sum += green;
    weighted += green * (i % width + 0.5);
  }
  return sum > 0 ? weighted / sum / width : -1;
}"""

# Save files stay in window.heldSaves until they are called.
HOLD_SAVES = f"""
  window.heldSaves = [];
  window.WebSocket = class extends WebSocket {{
    set onmessage(take) {{
      super.onmessage = take && ((event) => {{
        const isSave = event.data instanceof ArrayBuffer && new Uint8Array(event.data)[0] === {SAVE};
        if (isSave) window.heldSaves.push(() => take(event));
        else take(event);
      }});
    }}
  }};
"""


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learned_toy_world(tmp_path_factory.getbasetemp()) / "run"


@pytest.fixture(scope="module")
def server(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(model_folder, "--max_players", 8, cwd=tmp_path_factory.mktemp("work")) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as runner:
        chromium = runner.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: "playwright.Browser", server: Serving) -> Iterator["playwright.Page"]:
    """A page that plays; it must come to its end without an error of its script."""
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server.address)
    playing(page)
    yield page
    page.close()
    assert not errors


def frame(page: "playwright.Page") -> int:
    return int(page.locator("body").get_attribute("data-frame") or -1)


def playing(page: "playwright.Page") -> None:
    """Waits until the picture has gone on."""
    until(lambda: frame(page) >= 0, "a first picture comes")
    since = frame(page)
    until(lambda: frame(page) != since, "pictures follow each other")


def notice(page: "playwright.Page") -> str:
    return page.locator("#notice").inner_text() if page.locator("#notice").is_visible() else ""


def move(page: "playwright.Page", key: str, arrived) -> float:
    """Holds a key until the square has arrived, and says where that is."""
    page.keyboard.down(key)
    until(lambda: arrived(page.evaluate(SQUARE_X)), f"{key} moves the square there")
    page.keyboard.up(key)
    return page.evaluate(SQUARE_X)


def test_left_and_right_move_the_picture_in_opposite_directions(page: "playwright.Page") -> None:
    left = move(page, "a", lambda x: 0 <= x < 0.35)
    right = move(page, "d", lambda x: x > 0.65)
    assert left < right
    move(page, "a", lambda x: 0 <= x < 0.35)


def test_the_slider_goes_back_and_play_goes_on_from_there(page: "playwright.Page") -> None:
    move(page, "a", lambda x: 0 <= x < 0.35)
    past = frame(page)
    move(page, "d", lambda x: x > 0.65)
    page.locator("#slider").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", past
    )
    until(lambda: page.evaluate(SQUARE_X) < 0.45, "the slider shows the picture of then")
    assert "plays on from here" in notice(page)
    present = frame(page)
    page.keyboard.press("Enter")
    until(lambda: past <= frame(page) < present, "play goes on from there")
    playing(page)


def test_after_going_back_by_keyboard_the_keys_play_again(doom_page: "playwright.Page") -> None:
    page = doom_page

    def is_at(name: str) -> bool:
        return page.evaluate("document.activeElement.id") == name

    until(lambda: frame(page) > 20, "there is a past")
    until(lambda: page.keyboard.press("Tab") or is_at("slider"), "Tab comes to the slider")
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    until(lambda: "plays on from here" in notice(page), "the slider shows the past")
    present = frame(page)
    page.keyboard.press("Enter")
    assert is_at("stage")
    for key, action in (("ArrowLeft", "TURN_LEFT"), ("Space", "ATTACK")):
        page.keyboard.down(key)
        until(lambda action=action: page.locator("body").get_attribute("data-action") == action, f"{key} plays")
        page.keyboard.up(key)
    until(lambda: frame(page) > present, "the game goes on")
    assert notice(page) == "" and page.locator("#clock").inner_text().startswith("live")


def test_pause_holds_the_game_and_a_key_of_the_game_plays_on(page: "playwright.Page") -> None:
    page.keyboard.press("p")
    until(lambda: "Paused" in notice(page), "the page says that the game is paused")
    last = until(lambda: (held := frame(page)) == (page.wait_for_timeout(1000), frame(page))[1] and held, "it stands")
    move(page, "d", lambda x: x > 0.65)
    until(lambda: frame(page) > last and notice(page) == "", "the game goes on")


def test_a_game_is_saved_downloaded_and_loaded_again(page: "playwright.Page", tmp_path: Path) -> None:
    move(page, "a", lambda x: 0 <= x < 0.35)
    page.keyboard.press("k")
    page.fill("#save_name", "on the left")
    page.keyboard.press("Enter")
    line = page.locator("#saves li", has_text="on the left")
    until(lambda: line.count() == 1, "the save is in the list")
    with page.expect_download() as download:
        line.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "on the left.save"
    download.value.save_as(tmp_path / "game.save")
    page.keyboard.press("Escape")
    move(page, "d", lambda x: x > 0.65)
    page.keyboard.press("k")
    line.get_by_role("button", name="Load", exact=True).click()
    until(lambda: page.evaluate(SQUARE_X) < 0.5, "the loaded game goes on where it was")
    page.keyboard.press("Escape")
    move(page, "d", lambda x: x > 0.65)
    page.set_input_files("#save_file", tmp_path / "game.save")
    until(lambda: page.evaluate(SQUARE_X) < 0.5, "so does one from a file")
    page.set_input_files("#save_file", {"name": "x.save", "mimeType": "", "buffer": b"no save at all"})
    until(lambda: "no save" in notice(page), "another file is refused")
    playing(page)


def test_a_save_has_its_own_name_though_the_next_one_is_asked_for_before_it_comes(
    browser: "playwright.Browser", server: Serving
) -> None:
    page = browser.new_page()
    page.add_init_script(HOLD_SAVES)
    page.goto(server.address)
    playing(page)
    for number, name in enumerate(("first", "second"), start=1):
        page.locator("#save_form").evaluate(
            "(form, name) => { form.elements[0].value = name; form.requestSubmit(); }", name
        )
        until(lambda number=number: page.evaluate("heldSaves.length") == number, f"the {name} save is on its way")
    page.evaluate("heldSaves.forEach((deliver) => deliver())")
    assert page.locator("#saves li > span:first-child").all_text_contents() == ["second", "first"]
    page.close()


def test_a_window_that_loses_the_focus_holds_no_key(page: "playwright.Page") -> None:
    page.keyboard.down("d")
    until(lambda: page.locator("body").get_attribute("data-action") == "RIGHT", "the key is down")
    page.evaluate("window.dispatchEvent(new Event('blur'))")
    until(lambda: page.locator("body").get_attribute("data-action") == "NOOP", "the key counts no longer")
    page.keyboard.up("d")


def test_the_keyboard_alone_reaches_every_panel_and_the_figures_are_saved(
    page: "playwright.Page", tmp_path: Path
) -> None:
    for key, panel in (("o", "options"), ("h", "help"), ("i", "statistics")):
        page.keyboard.press(key)
        assert page.locator(f"#{panel}").is_visible()
        assert page.locator(".panel:visible").count() == 1
    move(page, "a", lambda x: 0 <= x < 0.35)
    move(page, "d", lambda x: x > 0.65)
    with page.expect_download() as download:
        page.locator("#save_statistics").click()
    download.value.save_as(tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["nominal_frames_per_second"] == 10
    for name in ("frame_time_ms", "frames_per_second", "real_time_factor", "key_to_picture_ms", "engine_ms"):
        assert 0 < figures[name]["median"] <= figures[name]["percentile_95"], name
    page.keyboard.press("Escape")
    assert page.locator(".panel:visible").count() == 0


def test_without_a_fitting_real_game_or_an_agent_the_buttons_say_why(page: "playwright.Page") -> None:
    page.keyboard.press("t")
    assert page.locator("#game_button").is_disabled() and page.locator("#agent").is_disabled()
    assert "tics a second" in page.locator("#game_why").inner_text()
    assert "no agent" in page.locator("#agent_why").inner_text()
    page.keyboard.press("b")
    page.keyboard.press("y")
    playing(page)
    assert not page.locator("#real").is_visible()


def test_a_recording_is_a_film_its_actions_and_an_episode(page: "playwright.Page", server: Serving) -> None:
    import av
    import pyarrow.parquet as pq

    from episodes import inspect_episode

    move(page, "d", lambda x: x > 0.65)  # so that the way to the left is of many frames, wherever the game began
    page.locator("#episode").evaluate("box => { box.checked = true; }")
    page.keyboard.press("v")
    until(lambda: page.locator("#record").get_attribute("aria-pressed") == "true", "recording has begun")
    move(page, "a", lambda x: 0 <= x < 0.35)
    page.keyboard.press("v")
    told = str(until(lambda: text if "Recorded" in (text := notice(page)) else "", "the page says where it is"))
    folder = Path(f"/proc/{server.process.pid}/cwd").resolve()
    film = folder / told.split(": ")[1].split(" and ")[0]
    actions = json.loads(film.with_suffix(".json").read_text())["actions"]
    with av.open(str(film)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name.startswith("vp8") or "vp8" in stream.codec.name
        pictures = [picture.to_ndarray(format="rgb24") for picture in container.decode(stream)]
    assert len(pictures) == len(actions) + 1 and pictures[0].shape == (60, 80, 3)
    episode = folder / told.split(" and ")[1]
    assert pq.read_table(episode)["actions"].to_pylist() == actions and 1 in actions
    info = inspect_episode(episode)
    assert (info.width, info.height, info.alignment, info.tics_per_second) == (80, 60, "before", 10.0)


def test_the_sliders_offer_what_the_model_can_do_and_go_back_where_it_refuses(
    browser: "playwright.Browser", tmp_path: Path
) -> None:
    tiny_world_model(sampler_steps=4).save(tmp_path / "world_model")
    with serving(tmp_path / "world_model", "--guidance_scale", 7.25, cwd=tmp_path) as running:
        page = browser.new_page()
        page.goto(running.address)
        playing(page)
        page.keyboard.press("o")

        def settings() -> dict:
            return page.evaluate("report().settings")

        shown = page.locator("#steps").locator("xpath=..").locator("output")
        page.locator("#steps").focus()
        for key, steps in (("Home", 1), ("ArrowRight", 2), ("ArrowRight", 4), ("ArrowRight", 4)):
            page.keyboard.press(key)
            assert shown.inner_text() == str(steps)
            assert settings() == {"steps": steps, "guidance": 7.25, "noise": 0}
        for _ in range(5):
            playing(page)  # two pictures may be under way; the next ones are of after the server took the setting
        page.locator("#noise").focus()
        page.locator("#noise").evaluate(
            "slider => { slider.max = 12; slider.value = 12; slider.dispatchEvent(new Event('input')); }"
        )
        until(lambda: "choose 0 to 9" in notice(page), "the server refuses it")
        until(lambda: page.locator("#noise").input_value() == "0", "the slider is back where it was")
        assert settings() == {"steps": 4, "guidance": 7.25, "noise": 0}
        page.close()


def test_the_page_comes_back_by_itself_after_the_server_restarts(
    browser: "playwright.Browser", model_folder: Path, tmp_path: Path
) -> None:
    page = browser.new_page()
    with serving(model_folder, cwd=tmp_path) as first:
        port = first.port
        page.goto(first.address)
        playing(page)
    until(lambda: "connection is lost" in notice(page), "the page says that the connection is lost")
    with serving(model_folder, port=port, cwd=tmp_path):
        until(lambda: notice(page) == "", "the page is connected again")
        playing(page)
    page.close()


@pytest.fixture
def tiny_page(browser: "playwright.Browser", tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple]:
    """(a page, the server it plays at): a random dream of `request.param` frames a second."""
    tiny_world_model(tics_per_second=request.param).save(tmp_path / "world_model")
    with serving(tmp_path / "world_model", "--backend", "torch", cwd=tmp_path) as running:
        page = browser.new_page()
        page.goto(running.address)
        playing(page)
        yield page, running
        page.close()


@pytest.mark.parametrize("tiny_page", [10.0], indirect=True)
def test_a_connection_that_falls_silent_is_said_to_be_lost_and_the_game_goes_on_when_it_can(tiny_page: tuple) -> None:
    page, server = tiny_page
    session = page.evaluate("sessionStorage.getItem('session')")
    until(lambda: frame(page) > 20, "there is a past")
    first, present = page.locator("#slider").get_attribute("min"), frame(page)
    os.kill(server.process.pid, signal.SIGSTOP)  # as a network that is gone: nothing is closed, nothing comes
    try:
        until(lambda: "connection is lost" in notice(page), "the page says that the connection is lost")
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    until(lambda: notice(page) == "", "the page is connected again")
    playing(page)
    assert page.evaluate("sessionStorage.getItem('session')") == session
    assert page.locator("#slider").get_attribute("min") == first, "the past is still there"
    page.locator("#slider").evaluate("slider => { slider.value = 5; slider.dispatchEvent(new Event('input')); }")
    until(lambda: "plays on from here" in notice(page), "the slider shows the past")
    page.keyboard.press("Enter")
    until(lambda: 5 <= frame(page) < present, "play goes on from there")


@pytest.mark.parametrize("tiny_page", [10.0], indirect=True)
def test_a_past_that_another_window_has_rewound_is_forgotten(tiny_page: tuple) -> None:
    page, server = tiny_page
    until(lambda: frame(page) > 20, "there is a past")
    first = int(page.locator("#slider").get_attribute("min"))
    with server.join(page.evaluate("sessionStorage.getItem('session')")) as other:
        until(lambda: "another window" in notice(page), "the other window has the game")
        jump = next_letter(other, "jumped")
        send(other, type="rewind", timeline=jump["timeline"], frame=10)
        next_frame(other, lambda picture: picture.timeline > jump["timeline"])
    page.keyboard.press("a")
    until(lambda: notice(page) == "", "this window has it again")
    playing(page)
    assert int(page.locator("#slider").get_attribute("min")) >= 10 > first


@pytest.mark.parametrize("tiny_page", [100_000.0], indirect=True)
def test_a_machine_that_is_too_slow_is_shown_by_its_real_time_factor(tiny_page: tuple) -> None:
    page, _ = tiny_page
    clock = until(lambda: "×" in (text := page.locator("#clock").inner_text()) and text, "the factor is shown")
    assert re.fullmatch(r"live 0\.\d\d×", clock)


def test_a_phone_has_the_whole_page_and_buttons_to_touch(browser: "playwright.Browser", server: Serving) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 780}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(server.address)
    playing(page)
    page.touchscreen.tap(200, 100)
    until(lambda: page.locator("#touch").is_visible(), "there are buttons to touch")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("document.documentElement.scrollHeight") <= 780
    box = page.locator("#dream canvas").bounding_box()
    assert box["x"] >= 0 and 300 < box["width"] <= 390
    for name, arrived in (("LEFT", lambda x: 0 <= x < 0.35), ("RIGHT", lambda x: x > 0.65)):
        button = page.locator(f'#touch [data-button="{name}"]').bounding_box()
        place = {"x": button["x"] + button["width"] / 2, "y": button["y"] + button["height"] / 2}
        touch = context.new_cdp_session(page)
        touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [place]})
        until(lambda arrived=arrived: arrived(page.evaluate(SQUARE_X)), f"the button {name} moves the square")
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    context.close()


# ------------------------------------------------------------------------------------------------ gamepad and mouse

PAD = """() => {
  window.pad = { axes: [0, 0, 0, 0], buttons: Array.from({ length: 16 }, () => ({ pressed: false })) };
  window.pads = [];
  navigator.getGamepads = () => window.pads;
}"""


@pytest.fixture
def doom_page(browser: "playwright.Browser", tmp_path: Path) -> Iterator["playwright.Page"]:
    """A page that plays a random dream with Doom's buttons; its body tells the action of every frame."""
    buttons = ("ATTACK", "MOVE_FORWARD", "MOVE_LEFT", "MOVE_RIGHT", "MOVE_BACKWARD", "TURN_RIGHT", "TURN_LEFT")
    tiny_world_model(action_table=tuple(table_rows(action_table(buttons)))).save(tmp_path / "world_model")
    with serving(tmp_path / "world_model", "--backend", "torch", cwd=tmp_path) as running:
        page = browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.add_init_script(f"({PAD})()")
        page.goto(running.address)
        playing(page)
        yield page
        page.close()
        assert not errors


def test_a_gamepads_sticks_and_buttons_play_and_a_lost_one_lets_go(doom_page: "playwright.Page") -> None:
    def plays(action: str, change: str) -> None:
        doom_page.evaluate(change)
        until(lambda: doom_page.locator("body").get_attribute("data-action") == action, f"{change} plays {action}")

    doom_page.evaluate("window.pads = [null, window.pad]; window.dispatchEvent(new Event('gamepadconnected'))")
    plays("MOVE_FORWARD", "pad.axes[1] = -1")
    plays("MOVE_FORWARD+TURN_RIGHT", "pad.axes[2] = 0.9")
    plays("TURN_RIGHT", "pad.axes[1] = 0.2")  # within the dead zone
    plays("NOOP", "pad.axes[2] = 0")
    plays("MOVE_LEFT", "pad.axes[0] = -1")
    plays("ATTACK+MOVE_LEFT", "pad.buttons[7].pressed = true")
    plays("ATTACK", "pad.axes[0] = 0")
    plays("NOOP", "pad.buttons[7].pressed = false")
    plays("TURN_LEFT", "pad.buttons[14].pressed = true")
    plays("NOOP", "window.pads = []")
    plays("TURN_LEFT", "window.pads = [window.pad]; window.dispatchEvent(new Event('gamepadconnected'))")


def test_a_click_fires_and_the_captured_mouse_turns_both_ways(doom_page: "playwright.Page") -> None:
    def plays(action: str, does: Callable[[], object] = lambda: None) -> None:
        def is_played() -> bool:
            does()
            return doom_page.locator("body").get_attribute("data-action") == action

        until(is_played, f"{action} is played")

    box = doom_page.locator("#dream canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    doom_page.mouse.move(x, y)
    plays("NOOP")
    doom_page.mouse.down()
    plays("ATTACK")
    doom_page.mouse.up()
    plays("NOOP")
    until(lambda: doom_page.evaluate("document.pointerLockElement !== null"), "the picture holds the pointer")
    place = [x]

    def push(step_px: int) -> None:
        place[0] += step_px
        doom_page.mouse.move(place[0], y)

    plays("TURN_RIGHT", lambda: push(10))
    plays("NOOP")
    plays("TURN_LEFT", lambda: push(-10))
    plays("NOOP")
