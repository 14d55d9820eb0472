import pytest
import torch
import torch.nn.functional as F

from models.adversarial import gradient_penalty
from models.choices import PLACED_CRITIC_CONDITIONS as CRITIC_CONDITIONS
from models.condition import Condition, blobs, extent
from models.placed_gan import PlacedCritic, PlacedGenerator, _read, _spread

HERE, THERE, FAR = (0.3, 0.3), (0.7, 0.7), (15 / 16, 1 / 16)
ASKED = Condition.of_lists([[1, 2], [3]], 5, [[HERE, THERE], [HERE]])


def generator(**options):
    torch.manual_seed(0)
    shape = {"channels": (16, 16), "label_width": 8, "bounded": False, "noise": 4, "object_noise": 3} | options
    return PlacedGenerator(5, 6, shape.pop("size", 8), shape.pop("side", 8), **shape).eval()


def noise_for(network, condition, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return network.noise_of(lambda width: torch.randn(len(condition), width, generator=rng), condition.slots)


def entered(network, noise, condition):
    """Returns the map of objects before the first block."""
    seen = []
    hook = network.blocks[0].register_forward_pre_hook(lambda block, given: seen.append(given[0]))
    network(noise, condition)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize(("size", "channels"), [(8, (16, 16)), (32, (16, 16, 8))])
def test_shapes(size, channels):
    network = generator(size=size, channels=channels)
    assert network(noise_for(network, ASKED), ASKED).shape == (2, 6, size, size)
    scores, logits = PlacedCritic(5, 6, size, 8, channels)(torch.randn(2, 6, size, size), ASKED)
    assert scores.shape == (2,) and logits.shape == (2, 6, 8, 8)


def test_too_few_widths_are_refused():
    with pytest.raises(ValueError, match="at least 4 widths"):
        generator(size=64)
    with pytest.raises(ValueError, match="at least 4 widths"):
        PlacedCritic(5, 6, 64, 8, (8, 8))


def test_objects_with_their_places_and_noise_may_swap_slots():
    network = generator()
    noise = noise_for(network, ASKED)[:1]
    scene, first, second = noise.split([4, 3, 3], dim=1)
    turned = Condition.of_lists([[2, 1]], 5, [[THERE, HERE]])
    out = network(noise, ASKED[:1])
    torch.testing.assert_close(network(torch.cat([scene, second, first], 1), turned), out, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(network(noise, turned), out, atol=1e-3)


def test_an_object_and_its_noise_enter_only_at_its_place():
    network, row = generator(), ASKED[:1]
    noise = noise_for(network, row)
    other = noise.clone()
    other[:, 4:7] += 1.0  # the first object's
    change = (entered(network, noise, row) - entered(network, other, row)).abs().sum(1)[0]
    assert change.argmax() == 2 * 8 + 2  # the cell of HERE is row 2, column 2 (0.3 x 8 = 2.4)
    assert change[5:, 5:].max() < 1e-3 * change.max()


def test_the_noise_of_the_first_slots_does_not_depend_on_how_many_there_are():
    """For three slots it is one draw."""
    network, row = generator(noise=20, object_noise=6), Condition.of_lists([[1]], 5)
    drawn = {slots: noise_for(network, row.with_slots(slots)) for slots in (1, 2, 3, 4, 7)}
    assert torch.equal(drawn[3], torch.randn(1, 20 + 3 * 6, generator=torch.Generator().manual_seed(1)))
    for slots, noise in drawn.items():
        assert noise.shape == (1, 20 + slots * 6)
        assert torch.equal(noise, drawn[7][:, : 20 + slots * 6])


def test_an_object_without_a_place_is_spread_evenly():
    network = generator()
    row = Condition.of_lists([[1]], 5)
    bare = entered(network, noise_for(network, row), row) - network.background
    assert torch.allclose(bare, bare[..., :1, :1].expand_as(bare), atol=1e-6)


def test_empty_slots_have_no_effect():
    network, critic = generator(), PlacedCritic(5, 6, 8, 8, (16, 16)).eval()
    noise, longer = noise_for(network, ASKED), ASKED.with_slots(3)
    out = network(noise, ASKED)
    padded = torch.cat([noise, torch.randn(2, 3)], 1)
    torch.testing.assert_close(network(padded, longer), out, atol=1e-5, rtol=1e-4)
    for mine, theirs in zip(critic(out, ASKED), critic(out, longer), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_the_critic_reads_an_object_at_its_place():
    """In a picture that shows something only at one cell, its object's score changes there and not elsewhere."""
    critic = PlacedCritic(5, 6, 8, 8, (16, 16)).eval()
    with torch.no_grad():
        for module in (critic.score, critic.project):
            module.weight.zero_()
        x = torch.zeros(1, 6, 8, 8)
        x[0, :, 2, 2] = 5.0

        def score(place):
            return critic(x, Condition.of_lists([[1]], 5, [[place]]))[0].item()

        empty = critic(torch.zeros_like(x), Condition.of_lists([[1]], 5, [[FAR]]))[0].item()
    assert score(FAR) == pytest.approx(empty, abs=1e-3)
    assert abs(score((2.5 / 8, 2.5 / 8)) - empty) > 0.01


@pytest.mark.parametrize("condition", CRITIC_CONDITIONS)
def test_the_critic_has_exactly_the_conditions_that_it_is_asked_for(condition):
    """With projection its score depends on objects and places; with only the auxiliary head, on neither."""
    critic = PlacedCritic(5, 6, 8, 8, (16, 16), condition)
    x, moved = torch.randn(2, 6, 8, 8), ASKED.with_places(ASKED.places.flip(1))
    score, logits = critic(x, ASKED)
    for other in (Condition.of_lists([[2, 3], [1]], 5, [[HERE, THERE], [HERE]]), moved):
        assert torch.equal(critic(x, other)[0], score) == (condition == "auxiliary")
    assert (logits is None) == (condition == "projection")


def test_the_critic_refuses_an_unknown_condition():
    with pytest.raises(ValueError, match="'concatenation'; choose one of projection, auxiliary"):
        PlacedCritic(5, 6, 8, 8, (16, 16), "concatenation")


def test_the_penalty_differentiates_it_twice():
    critic = PlacedCritic(5, 6, 8, 8, (16, 16))
    real, fake = torch.randn(2, 2, 6, 8, 8)
    penalty, slope = gradient_penalty(critic, real, fake, ASKED, torch.rand(2, 1, 1, 1))
    penalty.backward()
    assert slope > 0
    assert critic.there.weight.grad.abs().sum() > 0


def test_objects_are_spread_around_their_places_or_evenly():
    asked = Condition.of_lists([[1, 2], [3]], 5, [[HERE, None], [THERE]])
    spread = _spread(asked, 16)
    torch.testing.assert_close(spread[0, 0], blobs(asked.places[:1, :1], 16, extent(16))[0, 0])
    torch.testing.assert_close(spread[0, 1], torch.full((16, 16), 1 / 256))
    assert (spread[1, 1] == 0).all() and extent(16) > extent(4) == 0.8


def test_the_scenes_noise_enters_everywhere():
    network = generator()
    noise = noise_for(network, ASKED)
    other = torch.cat([noise[:, :4] + 1, noise[:, 4:]], dim=1)
    change = entered(network, other, ASKED) - entered(network, noise, ASKED)
    assert change.abs().amin((2, 3)).max() > 1e-3 and change.std((2, 3)).max() < 1e-5  # the same in all cells


def test_the_score_is_a_sum_of_three_parts():
    critic, x = PlacedCritic(5, 6, 8, 8, (16, 16)), torch.randn(2, 6, 8, 8)
    maps = F.silu(critic.blocks[0](critic.enter(x)))
    total = maps.sum((2, 3))
    projected = (critic.project(ASKED.labels) * total).sum(1)
    wanted = critic.score(total)[:, 0] + projected + _read(critic.there(maps), ASKED).sum(1)
    torch.testing.assert_close(critic(x, ASKED)[0], wanted, atol=1e-4, rtol=1e-4)


def test_an_object_is_read_as_the_mean_of_its_own_map():
    maps = torch.arange(1.0, 6)[None, :, None, None].expand(2, 5, 8, 8)
    asked = Condition.of_lists([[1, 2], [3]], 5, [[HERE, None], [THERE]])
    torch.testing.assert_close(_read(maps, asked), torch.tensor([[2.0, 3.0], [4.0, 0.0]]))


def test_bounded_pictures_are_the_tangent_of_unbounded_ones():
    free, bounded = generator(), generator(bounded=True)
    noise = noise_for(free, ASKED)
    assert bounded(noise, ASKED).equal(free(noise, ASKED).tanh())
