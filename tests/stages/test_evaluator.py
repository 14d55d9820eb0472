"""A checkpoint in the lab's format, written here, is adopted; a result names the evaluator that judged."""

import json

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from models.condition import Condition
from models.evaluator import Evaluator
from stages.engine.draws import Draws
from stages.evaluator import augmented, load_lab_checkpoint
from tests.stages.handful import DEVICE


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


def test_places_move_with_the_pictures_that_are_mirrored_and_shifted():
    """Evaluator and reader learn from these places what a cell shows."""
    columns, rows, count = torch.arange(20, 36, 2), torch.arange(44, 28, -2), 8
    images = torch.zeros(count, 3, 64, 64)
    images[torch.arange(count), :, rows, columns] = 1
    places = [[((x + 0.5) / 64, (y + 0.5) / 64), None] for x, y in zip(columns.tolist(), rows.tolist(), strict=True)]
    condition, down, sides = Condition.of_lists([[0, 1]] * count, 3, places), set(), set()
    for step in range(12):
        moved, told = augmented(images, condition, 0.0, Draws(0, "evaluator", step, count, DEVICE))
        at = moved[:, 0].flatten(1).argmax(1)
        shown = torch.stack([at % 64, at // 64], dim=1)
        torch.testing.assert_close(told.places[:, 0], (shown + 0.5) / 64)
        assert (told.places[:, 1] == -1).all() and torch.equal(told.objects, condition.objects)
        down |= {*(shown[:, 1] - rows).tolist()}
        sides.add(bool(shown[0, 0] > 32))
    assert len(down) > 3 and max(map(abs, down)) <= 4 and sides == {False, True}


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_that_share_of_a_batch_passes_through_half_the_size(share):
    images, condition = torch.rand(400, 3, 32, 32), Condition.of_lists([[0]] * 400, 1)
    made, _ = augmented(images, condition, share, Draws(0, "evaluator", 0, 400, DEVICE))
    coarse = made.std((1, 2, 3)) < 0.2  # means of four of [0, 1)
    assert coarse.float().mean().item() == pytest.approx(share, abs=0.06)
