"""`make bench`: the arithmetic rate of the LDM's training step beside the rate of bare convolutions on this machine."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stages.engine.command import Context, command
from stages.engine.denoising import denoising_errors, diffusion_of
from stages.engine.ema import Ema
from stages.engine.optim import Optimizer
from stages.engine.run import describe_device
from stages.ldm import build_unet

REPEATS = 9


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Median time of one call, after two that warm up."""
    times = []
    for _ in range(REPEATS + 2):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def flops(work: Callable[[], object]) -> int:
    """Multiplications and additions of one call, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def convolution_rate(context: Context, batch: int, channels: int, side: int, repeat: int = 4) -> float:
    """FLOP/s of 3x3 convolutions (batch, channels, side, side), forward and backward, in the stages' precision."""
    layers = nn.Sequential(*(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(repeat)))
    layers.to(context.device, memory_format=torch.channels_last)
    x = torch.randn(batch, channels, side, side, device=context.device).to(memory_format=torch.channels_last)
    x.requires_grad_()

    def work() -> None:
        with context.autocast():
            y = layers(x)
        y.backward(torch.ones_like(y))

    return flops(work) / seconds(work, context.device)


def ldm_step(context: Context) -> Callable[[], Tensor]:
    """One training step of the configuration's LDM on random latents, as `stages.ldm` takes it."""
    s = context.config.ldm
    inputs = context.config.vae.latent_channels
    network = build_unet(s, inputs, 24, 3).to(context.device, memory_format=torch.channels_last)
    ema, optimizer = Ema(network, s.ema), Optimizer(network, s)
    diffusion = diffusion_of(s, context.device)
    x0, noise = (torch.randn(s.batch, inputs, 8, 8, device=context.device) for _ in range(2))
    t = torch.randint(s.timesteps, (s.batch,), device=context.device)
    labels = torch.zeros(s.batch, 24, device=context.device)
    labels[:, :3] = 1

    weights = diffusion.loss_weight(t, s.min_snr, s.bound, s.log_snr)

    def step() -> Tensor:
        errors = denoising_errors(context, network, diffusion, x0, noise, t, labels)
        loss = (weights * errors).mean()
        optimizer.update(loss, 0)
        ema.update(0)
        return loss

    return step


def main(context: Context) -> None:
    s, n = context.config.ldm, context.config.ldm.network
    print(f"{describe_device(context.device)}, {str(context.dtype).removeprefix('torch.')}")
    rates = []
    for level, multiplier in enumerate(n.multipliers):
        width, side = n.channels * multiplier, 8 >> level
        rates.append(convolution_rate(context, s.batch, width, side))
        print(f"3x3 convolutions ({s.batch}, {width}, {side}, {side})   {rates[-1] / 1e9:8.0f} GFLOP/s")
    step = ldm_step(context)
    work, time_taken = flops(step), seconds(step, context.device)
    print(f"LDM step, {work / 1e9:.0f} GFLOP in {time_taken * 1000:.0f} ms   {work / time_taken / 1e9:8.0f} GFLOP/s")
    print(f"share of the convolutions' mean rate   {work / time_taken / statistics.mean(rates):.2f}")


if __name__ == "__main__":
    command("Measures the LDM training step against bare convolutions.", main)
