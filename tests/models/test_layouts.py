import pytest
import torch

from models.condition import Condition
from models.layouts import LayoutPrior, evenly, smallest_gaps

GRID = [(x / 10, y / 10) for x in range(11) for y in range(11)]


def training(rows=400):
    """Returns rows of one to three objects: the first in the middle, the others at least .3 from all before."""
    rng = torch.Generator().manual_seed(0)
    layouts = []
    for i in range(rows):
        places = [(0.5, 0.5)]
        while len(places) < i % 3 + 1:
            x, y = torch.rand(2, generator=rng).tolist()
            if all((x - a) ** 2 + (y - b) ** 2 >= 0.09 for a, b in places):
                places.append((x, y))
        layouts.append(places)
    return Condition.of_lists([[0, 1, 2][: len(row)] for row in layouts], 5, layouts)


CONDITIONS = training()
PRIOR = LayoutPrior.of(CONDITIONS)


def keys(rows, seed=0):
    return [torch.Generator().manual_seed(seed + i) for i in range(rows)]


def smallest_gap(places):
    return torch.pdist(places).min().item()


def test_the_smallest_gap_of_a_row_counts_its_objects_alone_and_needs_all_their_places():
    places = [[(0.1, 0.1)], [(0.1, 0.1), (0.1, 0.4)], [(0.1, 0.1), (0.1, 0.9), (0.5, 0.9)], [(0.2, 0.2), None], [None]]
    rows = Condition.of_lists([list(range(len(row))) for row in places], 5, places)
    assert smallest_gaps(rows).tolist() == pytest.approx([float("inf"), 0.3, 0.4, -1.0, float("inf")])
    assert smallest_gaps(Condition.of_lists([[0], [1]], 5)).tolist() == [float("inf")] * 2


def test_places_that_are_given_stay():
    assert PRIOR.complete(CONDITIONS, keys(len(CONDITIONS))).places.equal(CONDITIONS.places)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_objects_without_places_get_a_layout_of_training(number):
    rows = PRIOR.complete(Condition.of_lists([list(range(number))] * 20, 5), keys(20))
    seen = {tuple(map(tuple, places.tolist())) for places in PRIOR.layouts[number]}
    found = [tuple(map(tuple, places.tolist())) for places in rows.places]
    assert set(found) <= seen
    assert number == 1 or len(set(found)) > 5
    assert all(row[0] == (0.5, 0.5) for row in found)


@pytest.mark.parametrize("number", [4, 5])
def test_more_objects_than_training_shows_keep_its_distances(number):
    rows = PRIOR.complete(Condition.of_lists([list(range(number))] * 10, 5), keys(10))
    assert rows.placed.all()
    assert all(smallest_gap(places) >= PRIOR.nearest() - 1e-6 for places in rows.places)


def test_layouts_whose_objects_keep_a_distance():
    wide = PRIOR.apart(0.45)
    for number, places in PRIOR.layouts.items():
        kept = {tuple(map(tuple, layout.tolist())) for layout in wide.layouts[number]}
        assert kept == {tuple(map(tuple, one.tolist())) for one in places if number == 1 or smallest_gap(one) >= 0.45}
    assert 1 < len(wide.layouts[3]) < len(PRIOR.layouts[3]) and len(wide.layouts[1]) == len(PRIOR.layouts[1])
    rows = wide.complete(Condition.of_lists([[0, 1, 2]] * 10 + [[0, 1, 2, 3]] * 10, 5), keys(20))
    assert all(smallest_gap(places[:3]) >= 0.45 - 1e-6 for places in rows.places)


@pytest.mark.parametrize("number", [2, 3])
def test_where_no_layout_is_wide_enough_the_widest_is_kept(number):
    (widest,) = PRIOR.apart(5.0).layouts[number]
    assert smallest_gap(widest) == pytest.approx(max(map(smallest_gap, PRIOR.layouts[number])))
    assert PRIOR.apart(0.0).layouts[number] is PRIOR.layouts[number]


def test_where_some_places_are_given_the_others_keep_their_distance():
    given = Condition.of_lists([[0, 1, 2]] * 10, 5, [[None, (0.8, 0.8), None]] * 10)
    rows = PRIOR.complete(given, keys(10))
    torch.testing.assert_close(rows.places[:, 1], torch.full((10, 2), 0.8))
    assert all(smallest_gap(places) >= PRIOR.nearest() - 1e-6 for places in rows.places)


@pytest.mark.parametrize("number", [3, 4, 5])
def test_given_places_that_are_close_stay_and_the_others_keep_their_distance(number):
    close = [(0.5, 0.3), (0.52, 0.3)]
    given = Condition.of_lists([list(range(number))] * 10, 5, [[*close, *[None] * (number - 2)]] * 10)
    rows = PRIOR.complete(given, keys(10))
    torch.testing.assert_close(rows.places[:, :2], torch.tensor(close).expand(10, -1, -1))
    assert rows.placed.all()
    for places in rows.places:
        gaps = torch.cdist(places, places).fill_diagonal_(1)
        assert gaps[2:].min() >= PRIOR.nearest() - 1e-6


def test_where_no_place_is_far_enough_the_best_candidate_is_taken():
    given = Condition.of_lists([list(range(60))], 60, [[*GRID[::2][:59], None]])
    (places,) = PRIOR.complete(given, keys(1)).places
    assert (places >= 0).all() and places[:59].equal(given.places[0, :59])
    sources = PRIOR.layouts[3][:, 2]  # from which a slot beyond training's is drawn
    assert torch.cdist(places[59:], places[:59]).min() == torch.cdist(sources, places[:59]).amin(1).max()


def test_the_first_candidate_that_is_far_enough_is_taken_not_the_widest():
    rows = PRIOR.complete(Condition.of_lists([[0, 1]] * 40, 5, [[(0.5, 0.5), None]] * 40), keys(40))
    gaps = (rows.places[:, 0] - rows.places[:, 1]).norm(dim=1)
    assert gaps.min() >= PRIOR.nearest() and gaps.max() > gaps.min() + 0.1


def test_without_pairs_in_training_objects_are_put_as_far_apart_as_candidates_are():
    alone = LayoutPrior({1: torch.rand(100, 1, 2, generator=torch.Generator().manual_seed(0))})
    assert alone.nearest() == 0
    pairs = alone.complete(Condition.of_lists([[0, 1]] * 10, 5), keys(10)).places
    assert (pairs[:, 0] - pairs[:, 1]).norm(dim=1).min() > 0.9 * torch.pdist(alone.layouts[1][:, 0]).max()


def test_a_rows_layout_depends_only_on_its_key():
    asked = Condition.of_lists([[0, 1], [2], [0, 1, 2, 3]], 5)
    together = PRIOR.complete(asked, keys(3))
    for i in range(3):
        assert PRIOR.complete(asked[i : i + 1], keys(1, seed=i)).places[0].equal(together.places[i])
    assert not PRIOR.complete(asked, keys(3, seed=9)).places.equal(together.places)


def test_the_smallest_distance_is_that_of_training():
    assert 0.3 <= PRIOR.nearest() < 0.35


def test_an_empty_prior_leaves_places_unknown():
    asked = Condition.of_lists([[0, 1], [2]], 5)
    for prior in (LayoutPrior(), LayoutPrior.of(asked)):
        assert prior.complete(asked, keys(2)) is asked


def test_it_is_saved_with_an_exports_tensors():
    tensors = {"weight": torch.zeros(2)} | PRIOR.state_dict()
    prior, rest = LayoutPrior.split_from(tensors)
    assert list(rest) == ["weight"]
    assert prior.layouts.keys() == {1, 2, 3} and prior.layouts[3].equal(PRIOR.layouts[3])


@pytest.mark.parametrize(
    ("count", "most", "found"), [(5, 3, [0, 2, 4]), (3, 5, [0, 1, 2]), (10, 4, [0, 3, 6, 9]), (1, 4, [0]), (0, 4, [])]
)
def test_evenly_goes_from_first_to_last(count, most, found):
    assert evenly(count, most).tolist() == found


def test_at_most_most_layouts_are_kept():
    assert {len(places) for places in LayoutPrior.of(CONDITIONS, most=10).layouts.values()} == {10}
