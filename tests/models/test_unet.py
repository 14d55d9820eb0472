import pytest
import torch

from models.condition import Condition
from models.unet import Raster, Tokens, UNet, fourier

ALL = torch.ones(2, dtype=torch.bool)


def small(**options):
    torch.manual_seed(0)
    unet = UNet(channels=16, blocks=1, head_width=8, context=16, **options)
    with torch.no_grad():  # layers initialised to zero would hide everything
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return unet.eval()


def asked(*first, at=((0.2, 0.3), (0.7, 0.6))):
    """Returns two rows: the objects asked for, at places, and object 7 without a place."""
    return Condition.of_lists([first or (1, 5), (7,)], 24, [at, [None]])


def arguments():
    torch.manual_seed(1)
    return torch.randn(2, 6, 8, 8), torch.tensor([3, 900])


def close(a, b):
    return torch.allclose(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("condition", ["tokens", "vector"])
@pytest.mark.parametrize("pooled", [False, True])
def test_shape_and_dependence_on_labels_and_time(condition, pooled):
    unet = small(condition=condition, pooled=pooled)
    x, t = arguments()
    out = unet(x, t, asked())
    assert out.shape == (2, 6, 8, 8)
    assert not close(out, unet(x, t, asked(2, 6)))
    assert not close(out, unet(x, t + 50, asked()))


@pytest.mark.parametrize("options", [{}, {"condition": "vector"}, {"order": True, "places": True}])
def test_a_dropped_condition_is_forgotten(options):
    unet = small(pooled=True, **options)
    x, t = arguments()
    other = asked(2, 9, at=((0.9, 0.9), None))
    torch.testing.assert_close(unet(x, t, asked(), ~ALL), unet(x, t, other, ~ALL))
    assert not close(unet(x, t, asked(), ~ALL), unet(x, t, asked()))


@pytest.mark.parametrize("options", [{}, {"order": True, "places": True}])
def test_empty_slots_have_no_effect(options):
    unet = small(**options)
    x, t = arguments()
    assert close(unet(x, t, asked().with_slots(5)), unet(x, t, asked()))


def test_a_bare_set_has_neither_order_nor_places():
    unet = small(pooled=True)
    x, t = arguments()
    assert close(unet(x, t, asked(1, 5)), unet(x, t, asked(5, 1)))
    assert close(unet(x, t, asked()), unet(x, t, asked(at=(None, None))))


def test_order_tells_the_first_object_from_the_second():
    unet = small(order=True)
    x, t = arguments()
    assert not close(unet(x, t, asked(1, 5))[0], unet(x, t, asked(5, 1))[0])


def test_without_order_objects_may_swap_slots_with_their_places():
    unet = small(places=True)
    x, t = arguments()
    here, there = (0.2, 0.3), (0.7, 0.6)
    out = unet(x, t, asked(1, 5, at=(here, there)))
    assert close(out, unet(x, t, asked(5, 1, at=(there, here))))
    assert not close(out[0], unet(x, t, asked(1, 5, at=(there, here)))[0])
    assert not close(out[0], unet(x, t, asked(1, 5, at=(here, None)))[0])
    assert close(out[1], unet(x, t, asked(2, 3))[1])  # the other row, whose place is not known


def test_a_network_that_is_told_turns_reads_them_of_known_objects_only():
    unet, (x, t) = small(places=True, turns=True), arguments()
    some = asked().with_slots(3)

    def turned(*turns):
        return unet(x, t, some.with_turns(torch.tensor([turns, [-1.0] * 3])))

    out = turned(0.1, -1.0, -1.0)
    assert close(out, turned(0.1, -1.0, 0.6)), "the third slot is empty"
    assert not close(out[0], turned(0.2, -1.0, -1.0)[0])
    assert not close(out[0], unet(x, t, some)[0])
    assert close(out[1], unet(x, t, some)[1])
    assert close(turned(0.0, 0.3, -1.0), turned(1 - 1e-7, 0.3, -1.0)), "after a full turn it is where it was"
    dropped = unet(x, t, some.with_turns(torch.rand(2, 3)), ~ALL)
    assert close(dropped, unet(x, t, some, ~ALL))
    assert close(small(places=True)(x, t, some.with_turns(torch.rand(2, 3))), small(places=True)(x, t, some))


def test_tokens_are_the_objects():
    tokens = Tokens(24, 8, "tokens", 3, order=False, places=False, turns=False)
    context, mask, total = tokens(Condition.of_lists([[9, 4], []], 24), ALL)
    assert context.shape == (2, 3, 8)
    assert mask.tolist() == [[True, True, True], [True, False, False]]
    torch.testing.assert_close(context[0, 1:], tokens.embedding.weight[[9, 4]])
    torch.testing.assert_close(total[0], tokens.start + tokens.embedding.weight[[4, 9]].sum(0))


def test_slots_beyond_training_count_as_the_last():
    tokens = Tokens(24, 8, "tokens", 2, order=True, places=False, turns=False)
    context, _, _ = tokens(Condition.of_lists([[3, 3, 3, 3]], 24), ALL[:1])
    second, third, fourth = context[0, 2:]
    assert third.equal(second) and fourth.equal(second) and not context[0, 1].equal(second)


def test_the_raster_starts_at_zero_and_then_shows_each_object_at_its_place():
    raster, condition = Raster(24, 8, 4), asked(1, 5, at=((0.5 / 8, 0.5 / 8), (7.5 / 8, 7.5 / 8)))
    assert (raster(condition, ALL, 8) == 0).all()
    torch.nn.init.normal_(raster.leave.weight)
    found = raster(condition, ALL, 8)
    assert found.shape == (2, 4, 8, 8)
    torch.testing.assert_close(found[0, :, 0, 0], raster.leave.weight[:, :, 0, 0] @ raster.embedding.weight[1])
    assert found[0, :, 0, 7].abs().max() < 1e-6  # far from both
    assert (found[1] == 0).all()  # no place
    assert (raster(condition, ~ALL, 8) == 0).all()


def test_fourier_features_have_halving_periods():
    found = fourier(torch.tensor([[0.25, 1.0]]), 2)
    torch.testing.assert_close(found[0], torch.tensor([0.5**0.5, 1, 0.5**0.5, 0, 0, 0, -1, 1]), atol=1e-6, rtol=0)


def test_starts_at_zero():
    unet = UNet(channels=16, blocks=1, head_width=8, order=True, places=True)
    assert (unet(*arguments(), asked()) == 0).all()


def test_self_conditioning_takes_the_last_estimate_and_no_estimate_equals_zeros():
    unet = small(self_condition=True)
    x, t = arguments()
    out = unet(x, t, asked())
    torch.testing.assert_close(unet(x, t, asked(), None, torch.zeros_like(x)), out)
    assert not close(unet(x, t, asked(), None, torch.ones_like(x)), out)
