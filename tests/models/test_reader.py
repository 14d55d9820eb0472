"""`found` inverts `targets`, figures equal those by hand, and a reader learns to find squares."""

import math

import pytest
import torch

from models.condition import Condition, unknown_turns
from models.reader import IGNORED, Found, Reader, distances, found, label_scores, placing, reading_loss, targets

CLASSES = 5
ASKED = Condition.of_lists(
    [[3, 1], [0], [2, 4, 1], [4]],
    CLASSES,
    [[(0.25, 0.5), (0.9, 0.12)], [(0.999, 0.001)], [(0.1, 0.2), (0.5, 0.77), (0.31, 0.22)], [(1.0, 1.0)]],
)


def exact(condition: Condition) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the logits and offsets of a perfect reader; ignored cells are background."""
    labels, offsets, _ = targets(condition, 16)
    labels = torch.where(labels == IGNORED, condition.classes, labels)
    return 20 * torch.nn.functional.one_hot(labels, condition.classes + 1).permute(0, 3, 1, 2).float(), offsets


def test_targets_and_found_are_inverse():
    pictures = found(*exact(ASKED))
    for seen, objects, places in zip(pictures, ASKED.objects.tolist(), ASKED.places.tolist(), strict=True):
        asked = sorted((i, *place) for i, place in zip(objects, places, strict=True) if i >= 0)
        assert [f.index for f in sorted(seen)] == [i for i, _, _ in asked]
        for f, (_, x, y) in zip(sorted(seen), asked, strict=True):
            assert (f.x, f.y) == (pytest.approx(x, abs=1e-6), pytest.approx(y, abs=1e-6))
            assert f.confidence > 0.99


def test_exact_logits_have_no_error_and_the_least_loss():
    figures = placing(found(*exact(ASKED)), ASKED, 64)
    assert figures["placement_error_pixels"] == pytest.approx(0, abs=1e-4)
    assert figures["placement_error_95"] == pytest.approx(0, abs=1e-4)
    assert (figures["not_found"], figures["too_many"], figures["too_few"]) == (0, 0, 0)
    cells, offsets = reading_loss(*exact(ASKED), ASKED)
    assert cells < 1e-4 and offsets == 0
    assert label_scores(exact(ASKED)[0]).argmax(1).tolist()[1] == 0


def test_a_cell_has_its_objects_label_neighbours_are_ignored_and_the_rest_is_background():
    labels, offsets, near = targets(Condition.of_lists([[2]], CLASSES, [[(8.75 / 16, 4.5 / 16)]]), 16)
    assert labels[0, 4, 8] == 2 and (labels == 2).sum() == 1
    assert labels[0, 4, 9] == IGNORED and labels[0, 4, 7] == CLASSES  # .75 and 1.25 cells away
    assert offsets[0, :, 4, 8].tolist() == pytest.approx([0.25, 0])
    assert offsets[0, :, 4, 9].tolist() == pytest.approx([-0.75, 0])
    assert near[0, 4, 9] and not near[0, 4, 7] and offsets[0, :, 4, 7].tolist() == [0, 0]


def test_an_object_keeps_its_cell_even_if_another_is_closer_to_the_centre():
    """The first is in a corner of cell 8, the second in cell 9 near the border and closer to the centre of 8."""
    labels, _, _ = targets(Condition.of_lists([[0, 1]], CLASSES, [[(8.02 / 16, 8.02 / 16), (9.05 / 16, 8.5 / 16)]]), 16)
    assert labels[0, 8, 8] == 0 and labels[0, 8, 9] == 1


def test_rows_with_an_unknown_place_teach_nothing():
    half = Condition.of_lists([[0, 1]], CLASSES, [[(0.5, 0.5), None]])
    labels, _, near = targets(half, 16)
    assert (labels == IGNORED).all() and not near.any()
    logits = torch.randn(1, CLASSES + 1, 16, 16, requires_grad=True)
    offsets = torch.randn(1, 2, 16, 16, requires_grad=True)
    sum(reading_loss(logits, offsets, half)).backward()
    assert not logits.grad.any() and not offsets.grad.any()


def test_of_two_neighbouring_cells_the_more_confident_one_counts():
    logits = torch.zeros(1, 3, 16, 16)
    logits[:, 2] = 9  # background
    logits[0, :, 5, 5], logits[0, :, 5, 6] = torch.tensor([12.0, 0, 9]), torch.tensor([0, 13.0, 9])
    logits[0, :, 5, 9] = torch.tensor([8.0, 0, 9])  # less probable than the background
    (seen,) = found(logits, torch.zeros(1, 2, 16, 16))
    assert [(f.index, f.x, f.y) for f in seen] == [(1, 6.5 / 16, 5.5 / 16)]
    odds = math.log(math.exp(13) + 1) - 9
    assert seen[0].confidence == pytest.approx(1 / (1 + math.exp(-odds)), rel=1e-5)


def test_figures_by_hand():
    asked = Condition.of_lists([[0, 1], [2], [3]], 4, [[(0.5, 0.5), (0.2, 0.2)], [None], [(0.4, 0.4)]])
    pictures = [
        [Found(0, 0.5, 0.75, 0.9), Found(0, 0.5, 0.625, 0.8)],  # the nearer counts: 8 pixels; 1 is not found
        [Found(2, 0.1, 0.1, 0.9), Found(1, 0.3, 0.3, 0.9)],  # no place was asked for; one too many
        [],
    ]
    assert distances(pictures, asked) == [[pytest.approx(0.125), None], [], [None]]
    figures = placing(pictures, asked, 64)
    assert figures["placement_error_pixels"] == figures["placement_error_95"] == pytest.approx(8)
    assert figures["not_found"] == pytest.approx(2 / 3)
    assert (figures["too_many"], figures["too_few"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))


def test_nothing_found_and_nothing_asked_have_no_error():
    asked = Condition.of_lists([[0]], 4, [[(0.5, 0.5)]])
    nothing = placing([[]], asked, 64)
    assert (nothing["placement_error_pixels"], nothing["not_found"], nothing["too_few"]) == (None, 1, 1)
    unplaced = placing([[]], Condition.of_lists([[0]], 4), 64)
    assert unplaced["not_found"] is None and unplaced["too_few"] == 1


def squares(count: int, seed: int) -> tuple[torch.Tensor, Condition]:
    """Returns pictures of two separate squares of ten pixels on noise, red (0) and blue (1), and their condition."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.1 * torch.randn(count, 3, 64, 64, generator=generator)
    corners = torch.randint(0, 54, (count, 2, 2), generator=generator)
    corners[:, 1, 0] = (corners[:, 0, 0] + torch.randint(12, 42, (count,), generator=generator)) % 54
    corners[:, 1, 1] = (corners[:, 0, 1] + torch.randint(12, 42, (count,), generator=generator)) % 54
    for image, pair in zip(images, corners.tolist(), strict=True):
        for (x, y), channel in zip(pair, (0, 2), strict=True):
            image[:, y : y + 10, x : x + 10] = -1
            image[channel, y : y + 10, x : x + 10] = 1
    places = (corners + 5) / 64
    objects = torch.tensor([[0, 1]]).repeat(count, 1)
    return images, Condition(objects, places, unknown_turns(objects), 2)


def test_a_reader_trained_for_a_few_steps_finds_drawn_squares():
    torch.manual_seed(0)
    reader = Reader(2, width=32)
    optimizer = torch.optim.Adam(reader.parameters(), lr=3e-3)
    for step in range(100):
        images, condition = squares(24, step)
        cells, offsets = reading_loss(*reader(images), condition)
        optimizer.zero_grad()
        (cells + offsets).backward()
        optimizer.step()
    images, condition = squares(64, 1000)
    with torch.no_grad():
        figures = placing(found(*reader.eval()(images)), condition, 64)
    assert figures["placement_error_pixels"] < 2
    assert figures["not_found"] < 0.05


def test_it_has_about_the_number_of_weights_it_documents():
    assert sum(p.numel() for p in Reader(24).parameters()) == pytest.approx(0.3e6, rel=0.15)
    logits, offsets = Reader(24)(torch.zeros(2, 3, 64, 64))
    assert logits.shape == (2, 25, 16, 16) and offsets.shape == (2, 2, 16, 16)
