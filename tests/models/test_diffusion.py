import math

import pytest
import torch

from models.diffusion import Diffusion, cosine_alpha_bar, linear_alpha_bar


def test_cosine_schedule_at_both_ends_and_in_the_middle():
    alpha_bar = cosine_alpha_bar(1000)
    assert alpha_bar.dtype == torch.float64
    assert alpha_bar[0] > 0.9999
    assert alpha_bar[-1] < 1e-6
    half = math.cos((0.5 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert alpha_bar[499].item() == pytest.approx(half, rel=1e-9)
    assert (alpha_bar.diff() < 0).all()


def test_linear_schedule_at_both_ends():
    alpha_bar = linear_alpha_bar(1000)
    assert alpha_bar[0].item() == pytest.approx(1 - 1e-4)
    assert alpha_bar[-1].item() == pytest.approx(4.0358e-5, rel=1e-3)  # the DDPM paper's end


@pytest.mark.parametrize("prediction", ["noise", "v"])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_target_converts_back_to_x0_and_noise(prediction, schedule):
    diffusion = Diffusion.create(schedule, 1000, prediction)
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(5, 6, 8, 8, generator=generator) for _ in range(2))
    t = torch.tensor([0, 100, 500, 800, 950])
    xt = diffusion.noised(x0, noise, t)
    back_x0, back_noise = diffusion.to_x0_and_noise(diffusion.target(x0, noise, t), xt, t)
    torch.testing.assert_close(back_x0, x0, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(back_noise, noise, atol=1e-3, rtol=1e-3)


def test_v_is_the_derivative_by_the_angle():
    """v = d x_t / d phi with alpha = cos phi, sigma = sin phi (arXiv 2202.00512, appendix D)."""
    diffusion = Diffusion.create("cosine", 1000, "v")
    x0, noise, t = torch.randn(1, 1, 2, 2), torch.randn(1, 1, 2, 2), torch.tensor([300])
    alpha, sigma = diffusion.scales(t)
    phi = torch.atan2(sigma, alpha)
    step = 1e-3
    slope = ((phi + step).cos() - (phi - step).cos()) * x0 + ((phi + step).sin() - (phi - step).sin()) * noise
    torch.testing.assert_close(diffusion.target(x0, noise, t), slope / (2 * step), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("prediction", ["noise", "v"])
def test_min_snr_weight_is_the_same_loss_on_x0(prediction):
    """Whatever is predicted, the weighted error equals min(snr, gamma) times the error of the implied x_0."""
    diffusion, gamma = Diffusion.create("cosine", 1000, prediction), 5.0
    x0, noise, t = torch.randn(4, 1, 2, 2), torch.randn(4, 1, 2, 2), torch.tensor([50, 300, 600, 900])
    xt, target = diffusion.noised(x0, noise, t), diffusion.target(x0, noise, t)
    wrong = target + 0.1
    implied, _ = diffusion.to_x0_and_noise(wrong, xt, t)
    snr = diffusion.alpha_bar[t] / (1 - diffusion.alpha_bar[t])
    expected = snr.clamp(max=gamma).float() * (implied - x0).square().mean(dim=(1, 2, 3))
    weighted = diffusion.loss_weight(t, gamma) * (wrong - target).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(weighted, expected, rtol=1e-3, atol=1e-6)


def test_no_gamma_means_unweighted():
    assert (Diffusion.create("cosine", 10, "v").loss_weight(torch.arange(10), None) == 1).all()
