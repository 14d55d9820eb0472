"""A checkpoint in the lab's format, written here, is adopted; a result names the evaluator that judged."""

import json

import torch
from torch import nn
from torchvision.models import resnet18

from models.evaluator import Evaluator
from stages.evaluator import load_lab_checkpoint


def lab_checkpoint(path):
    """Writes what the fact sheet describes: {"model": state dict of resnet18 with fc = Linear, Sigmoid}."""
    torch.manual_seed(0)
    network = resnet18(weights=None)
    network.fc = nn.Sequential(nn.Linear(512, 24), nn.Sigmoid())
    torch.save({"model": network.state_dict()}, path)
    return network.eval()


def test_loads_and_answers_as_the_lab_network_does(tmp_path):
    lab = lab_checkpoint(tmp_path / "checkpoint.pth")
    ours = load_lab_checkpoint(tmp_path / "checkpoint.pth", 24)
    images = torch.rand(4, 3, 64, 64) * 2 - 1
    torch.testing.assert_close(ours(images), lab(images))


def test_the_stage_adopts_it_and_the_export_says_so(stage, chain, tmp_path):
    lab_checkpoint(tmp_path / "checkpoint.pth")
    arguments = (f"root={tmp_path}", f"data.folder={chain}/smoke/render")
    status, said = stage("evaluator", *arguments, f"evaluator.checkpoint={tmp_path / 'checkpoint.pth'}")
    assert status == 0, said
    assert "lab evaluator, accuracy" in said
    status, said = stage("evaluator", *arguments, f"evaluator.checkpoint={tmp_path / 'checkpoint.pth'}")
    assert "finished already" in said
    status, said = stage("evaluator", *arguments)
    assert status == 2
    assert "evaluator.checkpoint" in said


def test_the_trained_one_reports_its_held_out_accuracy(chain):
    last = json.loads((chain / "smoke/evaluator/metrics.jsonl").read_text().splitlines()[-1])
    assert 0 <= last["held_out_accuracy"] <= 1
    assert Evaluator(24)(torch.zeros(1, 3, 64, 64)).shape == (1, 24)
