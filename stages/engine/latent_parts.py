"""One step of the autoencoder in parts (`vae.accumulate` above 1), equal to the step with the whole batch.

Codebook, noise, heads and the discriminator's weight each depend on the whole batch, so plain accumulation would be
wrong. All but the last are functions of the latents, which are small. The encoder therefore runs twice: without
gradients, for the latents of the whole batch, and part by part, with the gradient that those latents got
(arXiv 2101.06983, section 3, "GradCache"). An adaptive weight runs the decoder twice, too.
"""

from typing import Any

import torch
from torch import Tensor

from models.patch_discriminator import PatchDiscriminator, last_gradients, ratio
from stages.engine import distributed
from stages.engine.draws import Draws
from stages.engine.parts import means, parts_of


def step_in_parts(
    task: Any,
    step: int,
    draws: Draws,
    index: Tensor,
    images: Tensor,
    weights: Tensor,
    shown: Tensor | None,
    discriminator: PatchDiscriminator | None,
) -> dict[str, Tensor]:
    """Takes one step on pictures (b, 3, h, w) with pixel weights of that shape. Returns the metrics of `VaeTask.step`.

    `task` is a VaeTask; the engine imports no stage.
    `shown`: what each cell shows, (b, s/8, s/8), for a head that learns it.
    """
    network, optimizer, autocast = task.network, task.optimizers[0], task.context.autocast
    parts = parts_of(len(images), task.settings.accumulate)
    with torch.no_grad(), autocast():
        latents = torch.cat([network.latents(images[rows]) for rows in parts])
    latents.requires_grad_()
    with autocast():
        given, indices, commitment = task.given(latents, step >= task.settings.quantized_from, draws)
    weight = None if discriminator is None else _weight(task, parts, given.detach(), images, weights, discriminator)

    pictures, slopes, found = [], [], []
    for rows in parts:  # the decoder: gradients of its weights, and of what it was given
        of_part = given[rows].detach().requires_grad_()
        with autocast():
            made = network.decoder(of_part).float()
        loss, metrics = task.of_pictures(images[rows], made, weights[rows])
        if discriminator is not None and weight is not None:
            metrics |= {"adversarial": task.adversarial(discriminator, made), "adversarial_weight": weight}
            loss = loss + weight * metrics["adversarial"]
        optimizer.add(loss, len(parts), also=[of_part])
        assert of_part.grad is not None
        slopes.append(of_part.grad)
        pictures.append(made.detach())
        found.append(metrics)

    metrics = means(found) | {"commitment": commitment}
    loss = (given * torch.cat(slopes)).sum() + commitment + task.of_latents(latents, index, shown, metrics)
    optimizer.add(loss, also=[latents])
    assert latents.grad is not None
    for rows in parts:
        with autocast():
            again = network.latents(images[rows])
        optimizer.add((again * latents.grad[rows]).sum(), last=rows is parts[-1])
    metrics["gradient_norm"] = optimizer.take(step)
    return metrics | task.after(step, indices, images, torch.cat(pictures), discriminator)


def _weight(
    task: Any,
    parts: list[slice],
    given: Tensor,
    images: Tensor,
    weights: Tensor,
    discriminator: PatchDiscriminator,
) -> Tensor:
    """Returns the weight of the adversarial loss, which if adaptive depends on gradients of the whole batch."""
    d = task.settings.discriminator
    if not d.adaptive:
        return torch.full((), d.weight, device=given.device)
    found = []
    for rows in parts:
        with task.context.autocast():
            made = task.network.decoder(given[rows]).float()
        losses = task.of_pictures(images[rows], made, weights[rows])[0], task.adversarial(discriminator, made)
        found.append(torch.stack(last_gradients(*losses, task.network.decoder.last.weight)))
    ours, theirs = distributed.average(torch.stack(found).mean(dim=0))
    return d.weight * ratio(ours, theirs, d.adaptive_limit)
