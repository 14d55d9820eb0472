"""A condition is objects in order with optional places, and its labels are what the judge takes."""

import pytest
import torch

from models.condition import Condition, blobs, cell_labels, cell_loss, joined, label_loss

SOME = Condition.of_lists([[3, 1], [0], [2, 4, 1]], 5, [[(0.25, 0.5), None], [None], [(0.1, 0.2), (1.0, 0.0), None]])


def test_objects_keep_their_order_and_labels_are_their_multi_hot():
    assert SOME.objects.tolist() == [[3, 1, -1], [0, -1, -1], [2, 4, 1]]
    assert SOME.labels.tolist() == [[0, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0, 1, 1, 0, 1]]
    assert Condition.of_labels(SOME.labels).labels.equal(SOME.labels)


def test_labels_are_contiguous():
    """So a product with them rounds like one with the labels of the data."""
    for some in (SOME, SOME[torch.tensor([2, 0])], SOME.repeat(2)):
        assert some.labels.is_contiguous()


def test_a_row_may_have_places_for_all_some_or_none():
    assert SOME.placed.tolist() == [[True, False, False], [False] * 3, [True, True, False]]
    assert not SOME.only_placed(torch.tensor([False, True, False])).placed.any()
    assert SOME.only_placed(torch.tensor([True, False, False])).placed.sum() == 1


def test_turns_follow_their_objects():
    some = SOME.with_turns(torch.tensor([[0.5, -1.0, -1.0], [0.0, -1.0, -1.0], [-1.0, 0.25, 0.75]]))
    assert not SOME.turned.any()
    assert some.turned.tolist() == [[True, False, False], [True, False, False], [False, True, True]]
    assert some[[2, 0]].turns.equal(some.turns[[2, 0]]) and some.repeat(2).turns.equal(torch.cat([some.turns] * 2))
    assert joined([SOME[:1].with_slots(5), some]).turns[1:, :3].equal(some.turns)
    assert not joined([SOME[:1].with_slots(5), some]).turned[:, 3:].any()
    assert some.only_placed(torch.tensor([True, False, False])).turned.sum() == 1
    assert some.moved(lambda values: values[1:]).turned.sum() == 3


def test_rows_are_taken_repeated_padded_and_joined():
    assert SOME[torch.tensor([2, 0])].objects.tolist() == [[2, 4, 1], [3, 1, -1]]
    twice = SOME.repeat(2)
    assert len(twice) == 6 and twice[3:].labels.equal(SOME.labels)
    longer = joined([Condition.of_lists([[1]], 5), SOME.with_slots(4)])
    assert longer.slots == 4 and longer.labels[1:].equal(SOME.labels)
    assert not longer.placed[0].any()
    with pytest.raises(ValueError, match="3 slots"):
        SOME.with_slots(2)


def test_a_batch_without_rows_and_a_row_without_objects():
    empty = SOME[:0]
    assert len(empty) == 0 and empty.labels.shape == (0, 5)
    assert Condition.of_lists([[]], 5).labels.sum() == 0


def test_a_blob_is_at_its_place_and_zero_without_one():
    found = blobs(torch.tensor([[[0.5 / 8, 7.5 / 8], [-1.0, -1.0]]]), 8)
    assert found.shape == (1, 2, 8, 8)
    assert found[0, 0, 7, 0] == 1 and found[0, 0].argmax() == 56
    assert found[0, 0, 7, 1].item() == pytest.approx(torch.tensor(-0.5 / 0.64).exp().item())
    assert found[0, 1].abs().sum() == 0


def test_a_cell_shows_the_nearest_object_or_the_background():
    condition = Condition.of_lists([[3, 1], [2], []], 5, [[(0.5 / 8, 0.5 / 8), (2.5 / 8, 0.5 / 8)], [None], []])
    labels = cell_labels(condition, 8)
    assert labels[0, 0].tolist() == [3, 5, 1, 5, 5, 5, 5, 5]  # the next cells' centres are 1.25 deviations away
    assert (labels[0, 1:] == 5).all()
    assert (labels[1] == -100).all()  # somewhere, but not known where
    assert (labels[2] == 5).all()


def test_the_cell_loss_is_the_weighted_mean_over_known_cells():
    condition = Condition.of_lists([[3], [2]], 5, [[(0.5 / 8, 0.5 / 8)], [None]])
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 8, 8, generator=generator)
    negative = -logits[0].log_softmax(0)
    expected = (negative[3, 0, 0] + 0.05 * (negative[5].sum() - negative[5, 0, 0])) / (1 + 0.05 * 63)
    torch.testing.assert_close(cell_loss(logits, cell_labels(condition, 8)), expected)
    assert cell_loss(logits[1:], cell_labels(condition[1:], 8)) == 0


def test_the_label_loss_pulls_alike_whatever_the_size_of_the_vocabulary():
    pulls = []
    for classes in (24, 240, 2400):
        logits = torch.full((2, classes), -3.0, requires_grad=True)
        labels = torch.zeros(2, classes)
        labels[:, 5] = 1
        label_loss(logits, labels).backward()
        pulls.append(logits.grad[0, 5].item())
    assert pulls[0] < 0 and pulls[1:] == pytest.approx(pulls[:1] * 2)
    few = torch.randn(3, 24), torch.ones(3, 24)
    assert label_loss(*few).equal(torch.nn.functional.binary_cross_entropy_with_logits(*few))  # as recipes know it


def test_the_cell_loss_of_a_batch_in_two_parts_equals_that_of_the_whole():
    """Parts with many and few objects divide by one weight, and are averaged as processes average gradients."""
    condition = Condition.of_lists([[0, 1, 2], [3]], 5, [[(0.1, 0.1), (0.5, 0.5), (0.9, 0.9)], [(0.4, 0.2)]])
    logits, labels = torch.randn(2, 6, 8, 8), cell_labels(condition, 8)
    weight = torch.stack([torch.where(part == 5, 0.05, 1.0).sum() for part in labels]).mean()
    parts = [cell_loss(logits[i : i + 1], labels[i : i + 1], lambda value: weight) for i in range(2)]
    torch.testing.assert_close(sum(parts) / 2, cell_loss(logits, labels))


def test_rows_of_a_set_that_is_kept_in_few_bytes_are_int64():
    small = Condition(SOME.objects.to(torch.int8), SOME.places, SOME.turns, SOME.classes)
    assert small.labels.equal(SOME.labels)
    assert small[[1]].objects.dtype == torch.int64 and small[[1]].objects.equal(SOME[[1]].objects)


def test_a_row_is_wholly_placed_if_it_has_objects_and_all_of_their_places():
    rows = Condition.of_lists([[0, 1], [0, 1], [2], []], 5, [[(0.1, 0.2), (0.3, 0.4)], [(0.1, 0.2), None], [None], []])
    assert rows.wholly_placed.tolist() == [True, False, False, False]
