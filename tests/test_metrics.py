"""Promises of metrics.py and pictures.py: figures a person can compute, films that keep time."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metrics import ROWS, detail, format_rows, gap_closed, mean_frame, measure_rows, psnr
from pictures import CAPTION_HEIGHT_PX, FILM_WIDTH_PX, side_by_side, write_gif


def flat(*values: int) -> np.ndarray:
    """uint8 (T, 4, 6, 3), frame k of value values[k]."""
    return np.stack([np.full((4, 6, 3), value, np.uint8) for value in values])


def stripes(low: int, high: int) -> np.ndarray:
    """uint8 (1, 4, 6, 3) of upright stripes one pixel wide."""
    frame = np.full((1, 4, 6, 3), low, np.uint8)
    frame[:, :, 1::2] = high
    return frame


def rows_of(copy_last: float, ceiling: float, model: float) -> dict[str, dict[str, float]]:
    values = {"copy_last": copy_last, "constant": 19.0, "ceiling": ceiling, "model": model}
    return {name: {"psnr_db": value, "detail": 0.5} for name, value in values.items()}


# ------------------------------------------------------------------------------------------------ PSNR


@pytest.mark.parametrize(("difference", "expected_db"), [(1, 48.1308), (10, 28.1308), (255, 0.0)])
def test_psnr_of_a_flat_difference_is_20_log10_of_255_over_it(difference: int, expected_db: float) -> None:
    assert psnr(flat(255 - difference), flat(255)) == pytest.approx([expected_db], abs=1e-4)
    assert psnr(flat(255), flat(255 - difference)) == pytest.approx([expected_db], abs=1e-4)  # bytes do not wrap


def test_psnr_of_half_a_picture_off_by_ten_is_three_db_more_than_of_the_whole() -> None:
    half = flat(100)
    half[:, :2] = 110
    assert psnr(half, flat(100)) == pytest.approx([28.1308 + 3.0103], abs=1e-4)


def test_psnr_is_finite_for_identical_pictures() -> None:
    assert psnr(flat(7), flat(7)) == pytest.approx([10 * np.log10(255**2 * 12)])  # 58.92 dB


def test_the_mean_is_of_each_pictures_db_not_the_db_of_the_mean_error() -> None:
    rows = measure_rows(flat(100, 100), {"model": flat(101, 110)})
    assert rows["model"]["psnr_db"] == pytest.approx((48.1308 + 28.1308) / 2, abs=1e-4)


def test_psnr_refuses_shapes_that_differ() -> None:
    with pytest.raises(ValueError, match="one shape"):
        psnr(flat(1, 2), flat(1))


# ------------------------------------------------------------------------------------------------ detail


def test_detail_is_the_ratio_of_horizontal_gradients() -> None:
    assert detail(stripes(100, 110), stripes(100, 140)) == pytest.approx(10 / 40)
    assert detail(stripes(100, 140), stripes(100, 140)) == 1.0
    assert detail(flat(120), stripes(100, 140)) == 0.0


def test_detail_does_not_see_vertical_gradients() -> None:
    assert detail(stripes(0, 90).transpose(0, 2, 1, 3), stripes(0, 90).transpose(0, 2, 1, 3)) == 0.0


def test_detail_stays_finite_before_a_flat_real_picture() -> None:
    assert detail(stripes(0, 10), flat(5)) == pytest.approx(10.0)


def test_mean_frame_is_the_mean_of_each_pixel() -> None:
    assert np.array_equal(mean_frame(flat(10, 20, 60)), flat(30)[0])


# ------------------------------------------------------------------------------------------------ the rows


def test_gap_closed_is_the_share_between_copy_last_and_ceiling() -> None:
    assert gap_closed(rows_of(20, 30, 25)) == pytest.approx(0.5)
    assert gap_closed(rows_of(20, 30, 18)) == pytest.approx(-0.2)


def test_gap_closed_says_nothing_under_two_db() -> None:
    assert gap_closed(rows_of(20, 21.99, 21)) is None
    assert gap_closed(rows_of(25, 20, 21)) is None  # a ceiling below copy-last
    assert gap_closed(rows_of(20, 22, 21)) == pytest.approx(0.5)


def test_all_four_rows_are_printed_in_order_with_psnr_and_detail() -> None:
    lines = format_rows(rows_of(20, 30, 25)).splitlines()
    assert [line.split()[0] for line in lines[1:5]] == list(ROWS) == ["copy_last", "constant", "ceiling", "model"]
    assert lines[4].split() == ["model", "25.00", "0.50"]
    assert lines[5].endswith("50%")
    assert len(format_rows(rows_of(20, 21, 25)).splitlines()) == 5  # no share where the gap is noise


# ------------------------------------------------------------------------------------------------ pictures


def gif_durations(path: Path) -> list[int]:
    with Image.open(path) as gif:
        durations = []
        for number in range(gif.n_frames):
            gif.seek(number)
            durations.append(gif.info["duration"])
    return durations


@pytest.mark.parametrize("frames_per_second", [17.5, 8.75, 35.0, 30.0])
def test_a_gif_lasts_as_long_as_the_game_it_shows(tmp_path: Path, frames_per_second: float) -> None:
    write_gif(tmp_path / "film.gif", flat(*range(0, 240, 2)), frames_per_second)
    durations = gif_durations(tmp_path / "film.gif")
    ends = np.cumsum(durations)
    exact = np.arange(1, 121) * 1000 / frames_per_second
    assert np.abs(ends - exact).max() <= 5.0 + 1e-9  # GIF counts in 10 ms


def test_a_gif_holds_a_still_picture_for_its_whole_time(tmp_path: Path) -> None:
    write_gif(tmp_path / "film.gif", flat(*[9] * 20), 10.0)
    assert sum(gif_durations(tmp_path / "film.gif")) == 2000


def test_films_stand_side_by_side_in_order_with_room_for_captions() -> None:
    films = {"real": flat(10, 20), "dream": flat(110, 120)}
    pictures = side_by_side(films, ["1  LEFT", "2  RIGHT"])
    scale = FILM_WIDTH_PX // 6  # narrow films are enlarged
    assert pictures.shape == (2, 4 * scale + 2 * CAPTION_HEIGHT_PX, 2 * 6 * scale, 3)
    middle = pictures[:, CAPTION_HEIGHT_PX + 1]
    assert middle[0, : 6 * scale].max() == middle[0, : 6 * scale].min() == 10
    assert middle[1, 6 * scale :].max() == middle[1, 6 * scale :].min() == 120
    wide = np.zeros((1, 4, FILM_WIDTH_PX + 1, 3), np.uint8)
    assert side_by_side({"real": wide}, [""]).shape == (1, 4 + 2 * CAPTION_HEIGHT_PX, FILM_WIDTH_PX + 1, 3)
    assert pictures[0, -CAPTION_HEIGHT_PX:].any() and (pictures[0] != pictures[1]).any()
