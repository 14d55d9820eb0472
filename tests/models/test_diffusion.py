import itertools
import math

import pytest
import torch

from models.choices import PREDICTIONS
from models.diffusion import (
    SCHEDULES,
    Diffusion,
    beta_cosine_alpha_bar,
    cosine_alpha_bar,
    linear_alpha_bar,
    weighted_timesteps,
    zero_terminal,
)
from models.samplers import ancestral, every_timestep


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
    for timesteps in (20, 100, 250, 500):
        assert linear_alpha_bar(timesteps)[-1] < 5e-5  # as close to noise in fewer timesteps


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", ["cosine", "linear", "beta-cosine", "sigmoid"])
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


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weight_is_the_same_loss_on_x0(prediction):
    """For each prediction, the weighted error equals min(snr, gamma) times the error of the implied x_0."""
    diffusion, gamma = Diffusion.create("cosine", 1000, prediction), 5.0
    x0, noise, t = torch.randn(4, 1, 2, 2), torch.randn(4, 1, 2, 2), torch.tensor([50, 300, 600, 900])
    xt, target = diffusion.noised(x0, noise, t), diffusion.target(x0, noise, t)
    wrong = target + 0.1
    implied, _ = diffusion.to_x0_and_noise(wrong, xt, t)
    snr = diffusion.alpha_bar[t] / (1 - diffusion.alpha_bar[t])
    expected = snr.clamp(max=gamma).float() * (implied - x0).square().mean(dim=(1, 2, 3))
    weighted = diffusion.loss_weight(t, gamma) * (wrong - target).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(weighted, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_log_snr_weight_is_a_bell_on_the_error_of_v(prediction):
    """For each prediction, the weighted error equals the bell times the error of the implied v."""
    diffusion = Diffusion.create("cosine", 1000, prediction)
    x0, noise, t = torch.randn(4, 1, 2, 2), torch.randn(4, 1, 2, 2), torch.tensor([50, 300, 600, 900])
    xt, target = diffusion.noised(x0, noise, t), diffusion.target(x0, noise, t)
    wrong = target + 0.1
    implied, _ = diffusion.to_x0_and_noise(wrong, xt, t)
    snr = diffusion.alpha_bar[t] / (1 - diffusion.alpha_bar[t])
    bell = (-((snr.log() + 1.0) ** 2) / 8).exp()
    expected = (bell * (snr + 1)).float() * (implied - x0).square().mean(dim=(1, 2, 3))  # v's error, from x_0's
    weighted = diffusion.loss_weight(t, 5.0, log_snr=(-1.0, 2.0)) * (wrong - target).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(weighted, expected, rtol=1e-3, atol=1e-6)


def test_the_log_snr_weight_is_zero_at_pure_noise():
    weights = Diffusion.create("cosine", 1000, "v", zero_terminal_snr=True).loss_weight(
        torch.tensor([999]), None, log_snr=(-1.0, 2.0)
    )
    assert weights.item() == pytest.approx(0.0, abs=1e-6)


def test_no_gamma_means_unweighted():
    assert (Diffusion.create("cosine", 10, "v").loss_weight(torch.arange(10), None) == 1).all()


def test_weighted_timesteps_keep_the_weighted_loss():
    """The mean of f over draws by weight, times the mean weight, is the mean of weight times f over uniform draws."""
    weights = Diffusion.create("cosine", 1000, "v").loss_weight(torch.arange(1000), 5.0)
    f = torch.linspace(3, 1, 1000).square()
    t = weighted_timesteps((torch.arange(100_000) + 0.5) / 100_000, weights)
    torch.testing.assert_close(f[t].mean() * weights.mean(), (weights * f).mean(), rtol=1e-3, atol=0)
    assert weighted_timesteps(torch.tensor([0.0, 1 - 1e-7]), torch.tensor([0.0, 1.0, 1.0, 0.0])).tolist() == [1, 2]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_falls_from_nearly_one_and_its_zero_terminal_form_ends_at_zero(schedule):
    plain = Diffusion.create(schedule, 500, "v").alpha_bar
    assert plain.dtype == torch.float64
    assert plain[0] > 0.99 and plain[-1] > 0 and (plain.diff() < 0).all()
    shifted = Diffusion.create(schedule, 500, "v", zero_terminal_snr=True).alpha_bar
    assert shifted[-1] == 0
    assert shifted[0].item() == pytest.approx(plain[0].item())
    assert (shifted.diff() < 0).all()


def test_beta_cosine_betas():
    alpha_bar = beta_cosine_alpha_bar(501)
    betas = 1 - alpha_bar[1:] / alpha_bar[:-1]
    assert 1 - alpha_bar[0].item() == pytest.approx(1e-4)
    assert betas[249].item() == pytest.approx((1e-4 + 0.02) / 2)  # half-way, the cosine is zero
    assert betas[-1].item() == pytest.approx(0.02)


def test_the_posterior_is_that_of_two_gaussian_steps():
    """Derives it from q(x_{t-1} | x_0) and q(x_t | x_{t-1}) by the product of Gaussians."""
    diffusion, t = Diffusion.create("linear", 100, "v"), torch.tensor([40])
    before, here = diffusion.alpha_bar[39], diffusion.alpha_bar[40]
    alpha, beta = here / before, 1 - here / before
    precision = alpha / beta + 1 / (1 - before)
    of_x0, of_xt, variance = diffusion.posterior(t)
    assert variance.item() == pytest.approx(1 / precision.item())
    assert of_xt.item() == pytest.approx((alpha.sqrt() / beta / precision).item())
    assert of_x0.item() == pytest.approx((before.sqrt() / (1 - before) / precision).item())
    assert [v.item() for v in diffusion.posterior(torch.tensor([0]))] == pytest.approx([1, 0, 0])


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_bounds_weight_is_the_same_loss_for_each_prediction(prediction):
    diffusion, t = Diffusion.create("beta-cosine", 100, prediction), torch.tensor([0, 5, 50, 99])
    x0, noise = torch.randn(4, 1, 2, 2), torch.randn(4, 1, 2, 2)
    xt, target = diffusion.noised(x0, noise, t), diffusion.target(x0, noise, t)
    wrong = target + 0.1
    implied, _ = diffusion.to_x0_and_noise(wrong, xt, t)
    assert diffusion.alpha_bar[-1] > 1e-3  # nothing is cut off
    weighted = diffusion.loss_weight(t, None, bound=True) * (wrong - target).square().mean(dim=(1, 2, 3))
    on_x0 = Diffusion(diffusion.alpha_bar, "x0").loss_weight(t, None, bound=True)
    expected = on_x0 * (implied - x0).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(weighted / weighted.sum(), expected / expected.sum(), rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("prediction", ["noise", "mean"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bound_weighs_every_timestep_that_the_ancestral_sampler_visits(schedule, prediction):
    diffusion = Diffusion.create(schedule, 1000, prediction)
    weights = diffusion.loss_weight(torch.arange(1000), None, bound=True)
    noise, times = torch.zeros(1, 1, 1, 1), every_timestep(diffusion)
    visited = [t for t, _, _ in ancestral(lambda x, t: x, diffusion, noise, times, lambda: torch.zeros(1))]
    assert weights.nonzero().flatten().tolist() == sorted(visited)
    assert len(visited) == 1000 if "linear" in schedule or "beta" in schedule else 990 < len(visited) < 1000
    if prediction == "noise":
        assert weights.max() < 200, "one step would weigh as much as hundreds"


def test_the_sigmoid_schedule_is_that_of_its_paper():
    """arXiv 2301.10972, algorithm 1: (v_end - sigmoid(u)) / (v_end - v_start), u from -3 to 3."""
    alpha_bar = SCHEDULES["sigmoid"](1000)
    first, last = (1 / (1 + math.exp(-u)) for u in (-3.0, 3.0))
    for k in (1, 250, 500, 900):
        wanted = (last - 1 / (1 + math.exp(-(-3.0 + 6.0 * k / 1000)))) / (last - first)
        assert alpha_bar[k - 1].item() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("schedule", ["cosine", "sigmoid"])
def test_no_beta_is_above_999_thousandths(schedule):
    alpha_bar = SCHEDULES[schedule](1000)
    assert 1 - (alpha_bar[-1] / alpha_bar[-2]).item() == pytest.approx(0.999)


def test_a_zero_terminal_schedule_shifts_and_scales_alpha():
    """arXiv 2305.08891, algorithm 1: the first alpha stays, the last becomes 0, between them alpha is shifted."""
    before = linear_alpha_bar(100)
    alpha, now = before.sqrt(), zero_terminal(before).sqrt()
    assert now[0].item() == pytest.approx(alpha[0].item()) and now[-1] == 0
    torch.testing.assert_close(now, (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1])))


def test_a_place_at_the_end_is_the_last_timestep():
    weights = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    assert weighted_timesteps(torch.tensor([0.0, 1.0]), weights).tolist() == [0, 999]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_well_posed_step_keeps_half_of_what_remains(schedule):
    diffusion = Diffusion.create(schedule, 50, "noise")
    before = [1.0, *diffusion.alpha_bar.tolist()]
    wanted = [after >= 0.5 * b for b, after in itertools.pairwise(before)]
    assert diffusion.well_posed().tolist() == wanted


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_bounds_weights_have_mean_one(prediction):
    weights = Diffusion.create("linear", 100, prediction).loss_weight(torch.arange(100), None, bound=True)
    assert weights.mean().item() == pytest.approx(1.0, rel=1e-5)


def test_the_bounds_first_weight_has_the_variance_of_the_second():
    """Of x_0: factor^2 / (2 variance). At t = 0 the factor is 1 and the variance that of t = 1."""
    diffusion = Diffusion.create("linear", 100, "x0")
    first, second = diffusion.loss_weight(torch.tensor([0, 1]), None, bound=True).tolist()
    assert first / second == pytest.approx(1 / diffusion.posterior(1)[0].item() ** 2, rel=1e-5)
