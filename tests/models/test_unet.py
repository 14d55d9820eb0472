import pytest
import torch

from models.unet import LabelTokens, UNet


def small(**options):
    torch.manual_seed(0)
    unet = UNet(channels=16, blocks=1, head_width=8, context=16, **options)
    with torch.no_grad():  # the zero-initialised ends would hide everything
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return unet.eval()


def arguments(rows=2):
    labels = torch.zeros(rows, 24)
    labels[0, [1, 5]] = 1
    labels[1:, 7] = 1
    return torch.randn(rows, 6, 8, 8), torch.tensor([3, 900] * (rows // 2)), labels


@pytest.mark.parametrize("condition", ["tokens", "vector"])
@pytest.mark.parametrize("pooled", [False, True])
def test_shape_and_dependence_on_labels_and_time(condition, pooled):
    unet = small(condition=condition, pooled=pooled)
    x, t, labels = arguments()
    out = unet(x, t, labels)
    assert out.shape == (2, 6, 8, 8)
    assert not torch.allclose(out, unet(x, t, labels.roll(1, 1)))
    assert not torch.allclose(out, unet(x, t + 50, labels))


@pytest.mark.parametrize("condition", ["tokens", "vector"])
def test_a_dropped_set_forgets_its_labels(condition):
    unet = small(condition=condition, pooled=True)
    x, t, labels = arguments()
    dropped = torch.zeros(2, dtype=torch.bool)
    torch.testing.assert_close(unet(x, t, labels, dropped), unet(x, t, labels.roll(3, 1), dropped))
    assert not torch.allclose(unet(x, t, labels, dropped), unet(x, t, labels))


def test_padding_tokens_count_for_nothing():
    unet = small()
    x, t, labels = arguments()
    out = unet(x, t, labels)
    unet.labels.most = 10
    torch.testing.assert_close(unet(x, t, labels), out, atol=1e-5, rtol=1e-4)


def test_tokens_are_a_set_of_the_labels():
    tokens = LabelTokens(24, 8, "tokens", 3)
    labels = torch.zeros(2, 24)
    labels[0, [4, 9]] = 1
    context, mask, _ = tokens(labels, torch.tensor([True, True]))
    assert context.shape == (2, 4, 8)
    assert mask.tolist() == [[True, True, True, False], [True, False, False, False]]
    found = {tuple(row.tolist()) for row in context[0, 1:3]}
    assert found == {tuple(tokens.embedding.weight[i].tolist()) for i in (4, 9)}


def test_starts_at_zero():
    assert (UNet(channels=16, blocks=1, head_width=8)(*arguments()) == 0).all()


def test_self_conditioning_takes_the_last_estimate_and_none_is_zeros():
    unet = small(self_condition=True)
    x, t, labels = arguments()
    out = unet(x, t, labels)
    torch.testing.assert_close(unet(x, t, labels, None, torch.zeros_like(x)), out)
    assert not torch.allclose(unet(x, t, labels, None, torch.ones_like(x)), out)
