import pytest
import torch
from torchvision.models import alexnet

from models.perceptual import Perceptual, load_trunk


def test_zero_between_equal_pictures_and_frozen():
    torch.manual_seed(0)
    loss = Perceptual("alex").train()
    assert not loss.training
    assert not any(module.training for module in loss.modules())
    assert not any(p.requires_grad for p in loss.parameters())
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    assert loss(images, images).item() == pytest.approx(0, abs=1e-6)
    assert loss(images, -images).item() > 0


def test_takes_torchvisions_trunk():
    trunk = alexnet(weights=None).state_dict()
    loss = Perceptual("alex", load_trunk(trunk))
    own = dict(loss.lpips.net.named_parameters())
    assert torch.equal(own["slice1.0.weight"], trunk["features.0.weight"])
    with pytest.raises((KeyError, RuntimeError)):
        Perceptual("vgg", load_trunk(trunk))
    with pytest.raises(ValueError, match="not a torchvision"):
        load_trunk({"weight": torch.zeros(1)})
