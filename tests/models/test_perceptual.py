from types import SimpleNamespace

import pytest
import torch
from torchvision.models import alexnet

from models.perceptual import Perceptual, load_trunk
from stages.engine.command import Context
from stages.engine.lpips import load_perceptual


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


def test_a_trunk_in_bfloat16_measures_almost_the_same_in_float32():
    trunk = load_trunk(alexnet(weights=None).state_dict())
    images, others = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        made = others.clone().requires_grad_()
        distance = Perceptual("alex", trunk, dtype)(images, made)
        distance.backward()
        assert distance.dtype == made.grad.dtype == torch.float32
        found[dtype] = distance.item(), made.grad.flatten()
    (exact, slope), (rounded, other) = found.values()
    assert rounded == pytest.approx(exact, rel=0.03)
    assert torch.cosine_similarity(slope, other, dim=0) > 0.95


@pytest.mark.parametrize(("device", "expected"), [("cpu", torch.float32), ("cuda", torch.bfloat16)])
def test_only_a_gpu_runs_the_trunk_in_the_stages_type(monkeypatch, tmp_path, device, expected):
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "trunk.pth")
    monkeypatch.setattr("stages.engine.lpips.Perceptual", lambda network, trunk, dtype: dtype)
    settings = SimpleNamespace(network="alex", weights=str(tmp_path / "trunk.pth"))
    context = Context(None, torch.device(device), torch.bfloat16, None, 0.0, None)
    assert load_perceptual(settings, context) == expected
