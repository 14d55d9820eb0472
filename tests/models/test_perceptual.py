import hashlib
import re
from types import SimpleNamespace

import pytest
import torch
from torchvision.models import alexnet

from models.perceptual import Perceptual, load_trunk
from stages.engine.command import Context
from stages.engine.errors import UserError
from stages.engine.lpips import load_perceptual
from stages.evaluator import load_lab_checkpoint


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


def test_a_download_is_checked_by_the_hash_in_its_name(monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **options: asked.update(options, url=url))
    context = Context(None, torch.device("cpu"), torch.float32, None, 0.0, None)
    with pytest.raises(UserError):  # nothing was downloaded
        load_perceptual(SimpleNamespace(network="vgg", weights=None), context)
    assert (asked["check_hash"], asked["weights_only"]) == (True, True)
    assert re.search(r"-[0-9a-f]{8}\.pth$", asked["url"])


@pytest.mark.parametrize("given", [True, False])
def test_another_file_than_torchvision_s_is_said_to_be(monkeypatch, tmp_path, capsys, given):
    path = tmp_path / "checkpoints/alex-0badc0de.pth"
    path.parent.mkdir()
    torch.save({"features.0.weight": torch.zeros(1)}, path)
    url = f"https://example.org/{path.name}"
    monkeypatch.setattr("stages.engine.lpips.trunk_url", lambda network: url)
    monkeypatch.setattr("stages.engine.lpips.Perceptual", lambda *unused: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    context = Context(None, torch.device("cpu"), torch.float32, None, 0.0, None)
    settings = SimpleNamespace(network="alex", weights=str(path) if given else None)
    load_perceptual(settings, context)
    assert f"warning: {path} is another file than torchvision's alex-0badc0de.pth" in capsys.readouterr().err
    url = f"https://example.org/alex-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"
    load_perceptual(SimpleNamespace(network="alex", weights=str(path)), context)
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("fails", [MemoryError, lambda: torch.OutOfMemoryError("CUDA out of memory")])
def test_too_little_memory_is_not_taken_for_a_wrong_file(monkeypatch, tmp_path, fails):
    (tmp_path / "x.pth").write_bytes(b"")

    def load(*unused, **options):
        raise fails()

    monkeypatch.setattr(torch, "load", load)
    context = Context(None, torch.device("cpu"), torch.float32, None, 0.0, None)
    with pytest.raises((MemoryError, torch.OutOfMemoryError)):
        load_perceptual(SimpleNamespace(network="vgg", weights=str(tmp_path / "x.pth")), context)
    with pytest.raises((MemoryError, torch.OutOfMemoryError)):
        load_lab_checkpoint(tmp_path / "x.pth", 24)
