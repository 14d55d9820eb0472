"""How long an animation's frames are shown, how many there are, and the names of many pictures."""

import io
from types import SimpleNamespace

import pytest
from PIL import Image

from stages.use.output import MOST, encoded, sheets, still


def pictures(count):
    """Small pictures, no two alike."""
    return [Image.new("RGB", (4, 4), (2 * i, 250 - 2 * i, 0)) for i in range(count)]


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
@pytest.mark.parametrize(("count", "each"), [(2, 300), (10, 200), (60, 40)])
def test_an_animation_takes_about_two_seconds_and_stays_at_its_last_frame(suffix, count, each):
    moving, shown = Image.open(io.BytesIO(encoded(suffix, pictures(count)))), []
    for frame in range(moving.n_frames):
        moving.seek(frame)
        moving.load()
        shown.append(moving.info["duration"])
    assert shown == [each] * (count - 1) + [1500]


def test_of_many_steps_as_many_are_shown_as_fit_with_the_first_and_the_last():
    frames = [SimpleNamespace(x=[picture]) for picture in pictures(100)]
    made = sheets(frames)
    assert len(made) == MOST == 60
    assert [made[i].getpixel((1, 1)) for i in (0, -1)] == [frames[i].x[0].getpixel((1, 1)) for i in (0, -1)]


def test_the_names_of_more_than_a_hundred_pictures_sort_as_they_were_drawn(tmp_path):
    still(f"{tmp_path}/", pictures(101))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert (names[0], names[-1], len(names)) == ("000.png", "100.png", 101)
    assert Image.open(tmp_path / "100.png").getpixel((0, 0)) == (200, 50, 0)
