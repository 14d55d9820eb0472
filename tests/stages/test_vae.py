"""What the autoencoder's loss weighs."""

from types import SimpleNamespace

import torch

from stages.vae import VaeTask, median_picture


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
