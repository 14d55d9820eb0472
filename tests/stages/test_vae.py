"""What the autoencoder's loss weighs."""

import copy
from types import SimpleNamespace

import torch

import stages.vae
from stages.engine.checkpoint import load_export
from stages.engine.draws import Draws
from stages.engine.log import read_metrics
from stages.vae import VaeTask, median_picture
from tests.stages.handful import DEVICE, context_with, noise_pictures


def loss_of(images, made, background, foreground):
    task = SimpleNamespace(background=background, settings=SimpleNamespace(foreground=foreground))
    return VaeTask._reconstruction_loss(task, images, made).item()


def test_an_error_on_an_object_weighs_more_than_one_on_the_floor():
    background = torch.zeros(1, 3, 64, 64)
    images = background.repeat(1, 1, 1, 1)
    images[:, :, 20:30, 20:30] = 0.8
    on_object, on_floor = images.clone(), images.clone()
    on_object[:, :, 25, 25] += 0.5
    on_floor[:, :, 50, 50] += 0.5
    plain = 0.25 / 64**2
    assert loss_of(images, on_floor, background, 9.0) == torch.tensor(plain).item()
    assert abs(loss_of(images, on_object, background, 9.0) - 10 * plain) < 1e-7
    assert abs(loss_of(images, on_object, None, 9.0) - plain) < 1e-9


def test_the_median_picture_is_the_scenery():
    images = torch.full((9, 3, 64, 64), 100, dtype=torch.uint8)
    for i in range(9):
        images[i, :, 5 * i : 5 * i + 6, 20:30] = 255  # an object that is elsewhere in each picture
    assert torch.allclose(median_picture(images, images.device), torch.tensor(100 / 127.5 - 1), atol=1e-6)


def test_the_labels_shape_the_latents(chain):
    """The classification is part of the run; what it learned is not part of the autoencoder."""
    losses = [
        line["classification"] for line in read_metrics(chain / "smoke/vae/metrics.jsonl") if "commitment" in line
    ]
    assert losses and all(loss > 0 for loss in losses)
    tensors, _ = load_export(chain / "smoke/vae/export.safetensors", "")
    assert not any("classifier" in name or "score" in name for name in tensors)


def test_the_classification_moves_the_encoder_and_the_classifier(monkeypatch, tmp_path):
    monkeypatch.setattr(stages.vae, "load_evaluator", lambda context, classes: (None, {}))
    dataset = noise_pictures(tmp_path)

    def after_a_step(weight):
        task = VaeTask(context_with("vae.batch=4", f"vae.label_weight={weight}"), dataset)
        before = copy.deepcopy(task.classifier)
        task.step(0, Draws(0, "vae", 0, 4, DEVICE))
        return task, before

    (plain, _), (task, before) = after_a_step(0.0), after_a_step(0.5)
    assert plain.classifier is None and "classifier" not in plain.parts
    assert task.parts["classifier"] is task.classifier
    assert not torch.equal(task.classifier.score.weight, before.score.weight)
    pairs = zip(task.network.encoder.parameters(), plain.network.encoder.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    pairs = zip(task.network.decoder.parameters(), plain.network.decoder.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), "it is of the latents alone"
