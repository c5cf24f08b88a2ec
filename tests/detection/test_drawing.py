"""Boxes drawn on a picture: where the lines are, that labels are legible and do not hide each other."""

import numpy as np
from PIL import Image

from onnxcam.render import draw_boxes

Box = tuple[tuple[float, float, float, float], str, int]


def drawn(*boxes: Box, size: tuple[int, int] = (250, 200), colour: str = "gray") -> np.ndarray:
    return np.asarray(draw_boxes(Image.new("RGB", size, colour), boxes))


WHITE, YELLOW, GRAY = (255, 255, 255), (240, 228, 66), (128, 128, 128)


def test_lines_lie_on_the_edges_with_a_dark_rim_and_the_inside_stays() -> None:
    image = drawn(((50, 100, 150, 180), "", 0))
    for y, x in ((140, 50), (140, 150), (100, 120), (180, 100)):
        assert tuple(image[y, x]) == WHITE
    for y, x in ((140, 49), (140, 51), (179, 100), (181, 100)):
        assert tuple(image[y, x]) == (0, 0, 0)
    assert tuple(image[140, 100]) == GRAY and tuple(image[140, 30]) == GRAY


def test_edges_outside_the_picture_are_drawn_at_its_border() -> None:
    image = drawn(((-20, 30, 400, 500), "", 1))
    assert tuple(image[100, 0]) == YELLOW and tuple(image[100, 249]) == YELLOW and tuple(image[199, 100]) == YELLOW


def ground(image: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the label's ground, whose rows have more of the colour than the box's two lines."""
    same = (image == colour).all(-1)
    rows = np.flatnonzero((same.sum(1) > 10) & (same.sum(1) < 90))
    columns = np.flatnonzero(same[rows].sum(0) > 5)
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def test_a_label_stands_above_its_box_in_black_on_its_colour() -> None:
    image = drawn(((50, 100, 200, 180), "3 dog 0.85", 1), size=(750, 600))
    x0, y0, x1, y1 = ground(image[:98], YELLOW)
    assert 50 <= x0 < 54 and y1 - y0 >= 12 and x1 - x0 > 80
    part = image[y0 : y1 + 1, x0 : x1 + 1].reshape(-1, 3)
    dark = (part.max(1) < 60).mean()
    assert 0.08 < dark < 0.5


def test_a_label_on_a_dark_colour_is_white() -> None:
    image = drawn(((50, 100, 200, 180), "3 dog 0.85", 6), size=(750, 600))
    x0, y0, x1, y1 = ground(image[:98], (213, 94, 0))
    assert 0.08 < ((image[y0 : y1 + 1, x0 : x1 + 1] > 200).all(-1)).mean() < 0.5


def test_a_label_at_the_top_goes_into_the_box_and_one_at_the_right_moves_left() -> None:
    image = drawn(((190, 0, 249, 150), "0 traffic light 0.50", 1))
    x0, y0, x1, _ = ground(image, YELLOW)
    assert y0 < 5 and x1 <= 249 and x0 < 190


def test_labels_of_boxes_that_lie_on_each_other_do_not_overlap() -> None:
    image = drawn(((50, 60, 200, 180), "0 truck 0.61", 0), ((50, 60, 200, 180), "1 car 0.51", 1))
    first, second = ground(image, WHITE), ground(image, YELLOW)
    assert first[3] < 60 <= second[1]


def test_lines_and_text_grow_with_the_picture() -> None:
    image = drawn(((200, 400, 1500, 1500), "0 dog 0.85", 1), size=(2000, 2000))
    label = np.flatnonzero((image[:390] == YELLOW).all(-1).any(1))
    assert label[-1] - label[0] > 50
    assert all(tuple(image[1000, x]) == YELLOW for x in range(200, 208))


def test_the_picture_itself_stays_as_it_was() -> None:
    picture = Image.new("RGB", (100, 100), "gray")
    draw_boxes(picture, [((10, 10, 90, 90), "x", 0)])
    assert np.asarray(picture).tolist() == np.full((100, 100, 3), 128).tolist()
