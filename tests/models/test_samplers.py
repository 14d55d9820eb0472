import itertools

import pytest
import torch

from models.diffusion import Diffusion
from models.samplers import (
    SPACINGS,
    ancestral,
    ddim,
    dpm_solver,
    every_timestep,
    guided,
    guided_and_told,
    sampling_timesteps,
    score_of,
    spaced_timesteps,
)


def oracle_of(diffusion, x0):
    """Returns a denoiser that knows x_0."""

    def oracle(x, t):
        alpha, sigma = diffusion.scales(t)
        return diffusion.target(x0, (x - alpha * x0) / sigma, t)

    return oracle


def test_spaced_timesteps_begin_at_full_noise():
    assert spaced_timesteps(1000, 4) == [999, 749, 499, 249]
    assert spaced_timesteps(5, 5) == [4, 3, 2, 1, 0]
    assert spaced_timesteps(1000, 1) == [999]


@pytest.mark.parametrize("prediction", ["noise", "v"])
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_ddim_with_an_oracle_recovers_x0(prediction, steps):
    diffusion = Diffusion.create("cosine", 1000, prediction)
    x0 = torch.randn(3, 6, 8, 8)

    oracle = oracle_of(diffusion, x0)
    *_, (_, last, predicted) = ddim(oracle, diffusion, torch.randn(3, 6, 8, 8), sampling_timesteps(diffusion, steps))
    torch.testing.assert_close(last, predicted)
    tolerance = 2e-2 if prediction == "noise" else 1e-4  # x_0 from eps at alpha ~ 1e-4 loses digits
    torch.testing.assert_close(last, x0, atol=tolerance, rtol=tolerance)


def test_ddim_is_exact_for_gaussian_data():
    """For x_0 ~ N(0, s^2) the ideal denoiser is linear, and eta 0 carries N(0, 1) to N(0, s^2)."""
    diffusion, deviation = Diffusion.create("cosine", 1000, "noise"), 0.5

    def ideal(x, t):
        alpha, sigma = diffusion.scales(t)
        return x * sigma / (alpha.square() * deviation**2 + sigma.square())

    noise = torch.randn(2000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    *_, (_, last, _) = ddim(ideal, diffusion, noise, sampling_timesteps(diffusion, 500))
    assert (last / noise).std() < 1e-3  # the map is a scaling
    assert (last.std() / noise.std()).item() == pytest.approx(deviation, rel=0.02)


def test_eta_one_keeps_the_variance():
    diffusion = Diffusion.create("cosine", 1000, "noise")
    generator = torch.Generator().manual_seed(0)

    def ideal(x, t):  # x_0 ~ N(0, 1): x_t is N(0, 1) at every t
        return x * diffusion.scales(t)[1]

    def draw():
        return torch.randn(4000, 1, 1, 1, generator=generator)

    *_, (_, last, _) = ddim(ideal, diffusion, draw(), sampling_timesteps(diffusion, 100), 1.0, draw)
    assert last.std().item() == pytest.approx(1.0, abs=0.04)


def _denoisers(calls):
    def conditional(x, t):
        calls.append("c")
        return x + 1

    def unconditional(x, t):
        calls.append("u")
        return x

    def both(x, t):
        calls.append("b")
        return torch.cat([x + 1, x])

    return conditional, unconditional, both


@pytest.mark.parametrize(("scale", "expected", "call"), [(0.0, 0.0, "u"), (1.0, 1.0, "c"), (3.0, 3.0, "b")])
def test_guidance_extrapolates_and_computes_no_more_than_needed(scale, expected, call):
    calls = []
    denoise = guided(*_denoisers(calls), scale, 1000)
    assert (denoise(torch.zeros(2, 1, 1, 1), 500) == expected).all()
    assert calls == [call]


def test_guidance_acts_within_its_interval_only():
    denoise = guided(*_denoisers([]), 3.0, 1000, (0.2, 0.8))
    values = [denoise(torch.zeros(1, 1, 1, 1), t).item() for t in (99, 499, 899)]
    assert values == [1.0, 3.0, 1.0]


@pytest.mark.parametrize("prediction", ["noise", "v"])
def test_a_network_with_small_errors_still_samples(prediction):
    """An oracle with errors of 1e-2 ends near x_0: no step divides by an alpha that is almost zero."""
    diffusion = Diffusion.create("cosine", 1000, prediction)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(8, 6, 8, 8, generator=generator)

    exact = oracle_of(diffusion, x0)

    def oracle(x, t):
        return exact(x, t) + 1e-2 * torch.randn(x.shape, generator=generator)

    *_, (_, last, _) = ddim(
        oracle, diffusion, torch.randn(x0.shape, generator=generator), sampling_timesteps(diffusion, 50)
    )
    assert (last - x0).abs().mean() < 0.1


def test_noise_prediction_starts_where_alpha_is_not_almost_zero():
    diffusion = Diffusion.create("cosine", 1000, "noise")
    times = sampling_timesteps(diffusion, 50)
    assert len(times) == 50
    assert times == sorted(set(times), reverse=True)
    assert diffusion.alpha_bar[times[0]] >= 1e-3
    assert sampling_timesteps(Diffusion.create("cosine", 1000, "v"), 50)[0] == 999


@pytest.mark.parametrize("spacing", SPACINGS)
def test_spacings_fall_from_the_noisy_end_without_repeats(spacing):
    times = spaced_timesteps(1000, 50, spacing)
    assert times[0] == 999
    assert times == sorted(set(times), reverse=True)
    assert spaced_timesteps(10, 10, spacing)[:1] == [9]
    if spacing == "quadratic":
        assert times[-1] == 0
        assert times[-2] - times[-1] < times[0] - times[1], "dense where little noise is left"


def test_ancestral_is_ddim_with_eta_one_over_every_timestep():
    diffusion = Diffusion.create("linear", 50, "v")

    def denoiser(x, t):
        return 0.3 * x + 0.01 * t

    start = torch.randn(2, 3, 4, 4)

    def draws():
        generator = torch.Generator().manual_seed(7)
        return lambda: torch.randn(start.shape, generator=generator)

    *_, (_, theirs, _) = ddim(denoiser, diffusion, start, sampling_timesteps(diffusion, 50), 1.0, draws())
    *_, (_, ours, _) = ancestral(denoiser, diffusion, start, every_timestep(diffusion), draws())
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["noise", "v", "x0", "mean"])
def test_ancestral_with_an_oracle_recovers_x0(prediction):
    diffusion = Diffusion.create("linear", 100, prediction)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(2, 3, 4, 4, generator=generator)

    oracle = oracle_of(diffusion, x0)

    def draw():
        return torch.randn(x0.shape, generator=generator)

    *_, (_, last, _) = ancestral(oracle, diffusion, draw(), every_timestep(diffusion), draw)
    torch.testing.assert_close(last, x0, atol=2e-2, rtol=2e-2)


def _guided_mean(sampler, prediction, scale):
    """Returns the mean of samples of x_0 ~ N(0, 1), guided by log p(y | x_t) = -(x_t - 2)^2 / 2 of constant width."""
    diffusion = Diffusion.create("linear", 200, prediction)
    generator = torch.Generator().manual_seed(0)

    def ideal(x, t):  # x_0 ~ N(0, 1): E[eps | x_t] = sigma x_t
        alpha, sigma = diffusion.scales(t)
        return diffusion.target(alpha * x, sigma * x, t)

    def draw():
        return torch.randn(4000, 1, 1, 1, generator=generator)

    score = score_of(lambda x, t: (ideal(x, t),) * 2, lambda told, x, t: -(x - 2).square().flatten(1).sum(1) / 2, scale)
    if sampler == "ancestral":
        *_, (_, last, _) = ancestral(ideal, diffusion, draw(), every_timestep(diffusion), draw, score)
    else:
        *_, (_, last, _) = ddim(ideal, diffusion, draw(), sampling_timesteps(diffusion, 200), 1.0, draw, score)
    return last.mean().item()


@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
@pytest.mark.parametrize("prediction", ["noise", "v", "x0"])
def test_a_classifier_pulls_samples_its_way_and_more_at_a_larger_scale(sampler, prediction):
    assert abs(_guided_mean(sampler, prediction, 0.0)) < 0.06
    weak, strong = _guided_mean(sampler, prediction, 0.5), _guided_mean(sampler, prediction, 1.0)
    assert 0.3 < weak < strong < 1.6


def test_both_algorithms_of_classifier_guidance_agree_for_small_steps():
    assert _guided_mean("ancestral", "v", 1.0) == pytest.approx(_guided_mean("ddim", "v", 1.0), abs=0.1)


@pytest.mark.parametrize("prediction", ["noise", "v", "x0"])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_dpm_solver_with_an_oracle_recovers_x0(prediction, steps):
    diffusion = Diffusion.create("cosine", 1000, prediction)
    x0 = torch.randn(3, 6, 8, 8)

    oracle = oracle_of(diffusion, x0)
    *_, (_, last, _) = dpm_solver(oracle, diffusion, torch.randn(3, 6, 8, 8), sampling_timesteps(diffusion, steps))
    torch.testing.assert_close(last, x0, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [10, 20])
def test_dpm_solver_is_closer_to_the_flow_than_ddim_in_the_same_number_of_steps(schedule, steps):
    """For x_0 ~ N(0, s^2) the exact flow scales x by the deviation of x_t. Measured before the last step, which is
    the same in both."""
    diffusion, deviation = Diffusion.create(schedule, 1000, "v"), 0.5

    def spread(t):
        alpha, sigma = diffusion.scales(torch.tensor([t]))
        return (alpha.square() * deviation**2 + sigma.square()).sqrt().item()

    def ideal(x, t):
        alpha, sigma = diffusion.scales(t)
        variance = alpha.square() * deviation**2 + sigma.square()
        return diffusion.target(x * alpha * deviation**2 / variance, x * sigma / variance, t)

    times = sampling_timesteps(diffusion, steps)
    exact = spread(times[-1]) / spread(times[0])
    errors = [
        abs(list(sampler(ideal, diffusion, torch.ones(1, 1, 1, 1), times))[-2][1].item() - exact)
        for sampler in (ddim, dpm_solver)
    ]
    assert errors[1] < 0.4 * errors[0]


def test_timesteps_by_hand():
    assert spaced_timesteps(1000, 5, "uniform") == [999, 749, 500, 250, 0]
    assert spaced_timesteps(1000, 3, "quadratic") == [999, 250, 0]
    for spacing in SPACINGS:
        assert spaced_timesteps(1000, 1, spacing) == [999]
        assert min(spaced_timesteps(2, 9, spacing)) == 0


@pytest.mark.parametrize("prediction", ["noise", "mean"])
def test_sampling_starts_at_the_last_timestep_that_shows_anything(prediction):
    diffusion = Diffusion.create("cosine", 1000, prediction)
    first = sampling_timesteps(diffusion, 10)[0]
    assert diffusion.alpha_bar[first] >= 1e-3 > diffusion.alpha_bar[first + 1]


def test_ddim_steps_by_hand():
    """arXiv 2010.02502, eq. 12 and 16, in float64; the last step, to abar 1, adds no noise."""
    diffusion, times, eta = Diffusion.create("linear", 100, "noise"), [99, 60, 20], 0.5
    generator = torch.Generator().manual_seed(0)
    start, *drawn = torch.randn(4, 2, 3, 4, 4, generator=generator)
    given = iter(drawn)
    found = [x for _, x, _ in ddim(lambda x, t: 0.1 * x + 0.01 * t, diffusion, start, times, eta, lambda: next(given))]
    x = start.double()
    for t, following, noise in zip(times, [60, 20, None], drawn, strict=True):
        eps, here = 0.1 * x + 0.01 * t, diffusion.alpha_bar[t]
        there = torch.ones_like(here) if following is None else diffusion.alpha_bar[following]
        sigma = eta * ((1 - there) / (1 - here)).sqrt() * (1 - here / there).sqrt()
        x = there.sqrt() * (x - (1 - here).sqrt() * eps) / here.sqrt() + (1 - there - sigma**2).sqrt() * eps
        x = x + sigma * noise
    torch.testing.assert_close(found[-1].double(), x, atol=1e-4, rtol=1e-4)
    assert len([*given]) == 1, "the last step draws none"


def test_dpm_solver_steps_by_hand():
    """arXiv 2211.01095, algorithm 2, with steps of different lengths."""
    diffusion, times = Diffusion.create("linear", 100, "x0"), [99, 80, 30, 5]
    start = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = [x for _, x, _ in dpm_solver(lambda x, t: 0.2 * x + 0.01 * t, diffusion, start, times)]
    x, before = start.double(), None
    for t, following in itertools.pairwise(times):
        x0 = 0.2 * x + 0.01 * t
        (alpha, sigma), (next_alpha, next_sigma) = (
            (diffusion.alpha_bar[s].sqrt(), (1 - diffusion.alpha_bar[s]).sqrt()) for s in (t, following)
        )
        h = (next_alpha / next_sigma).log() - (alpha / sigma).log()
        mixed = x0 if before is None else (1 + h / (2 * before[1])) * x0 - h / (2 * before[1]) * before[0]
        x, before = next_sigma / sigma * x - next_alpha * ((-h).exp() - 1) * mixed, (x0, h)
    torch.testing.assert_close(found[-2].double(), x, atol=1e-4, rtol=1e-4)


def test_dpm_solver_from_pure_noise_stays_finite():
    diffusion = Diffusion.create("linear", 100, "v", zero_terminal_snr=True)
    *_, (_, last, _) = dpm_solver(lambda x, t: 0.3 * x, diffusion, torch.randn(2, 3, 4, 4), [99, 60, 20, 0])
    assert last.isfinite().all()


def test_ancestral_sampling_bounds_what_is_predicted():
    diffusion = Diffusion.create("linear", 50, "x0")
    start, times = torch.randn(2, 3, 4, 4), every_timestep(diffusion)
    *_, (_, last, x0) = ancestral(
        lambda x, t: x + 5, diffusion, start, times, lambda: torch.zeros_like(start), clip=1.0
    )
    assert (x0 == 1).all() and (last == 1).all()


@pytest.mark.parametrize("sampler", [ancestral, ddim])
def test_a_score_is_asked_for_only_where_the_picture_shows(sampler):
    diffusion, asked = Diffusion.create("cosine", 100, "v"), []

    def score(x, t):
        asked.append(t)
        return 0.3 * x, torch.zeros_like(x)

    start, times = torch.randn(1, 3, 4, 4), every_timestep(diffusion)
    [*sampler(lambda x, t: 0.3 * x, diffusion, start, times, draw_noise=lambda: torch.zeros(1), score=score)]
    shows = [t for t in times if diffusion.alpha_bar[t] >= 1e-3]
    assert asked == [t for t in shows if t > 0 or sampler is ddim] and len(shows) < len(times)


def test_the_ends_of_the_guidance_interval_are_in_it():
    denoise = guided(*_denoisers([]), 3.0, 1000, (0.2, 0.8))
    values = [denoise(torch.zeros(1, 1, 1, 1), t).item() for t in (198, 199, 799, 800)]
    assert values == [1.0, 3.0, 3.0, 1.0]


def test_without_a_condition_the_interval_says_nothing():
    conditional, _, both = _denoisers([])
    for t in (99, 499):
        made, told = guided_and_told(conditional, both, 0.0, 1000, (0.2, 0.8))(torch.zeros(1, 1, 1, 1), t)
        assert (made.item(), told.item()) == (0.0, 1.0)


def test_a_score_is_the_gradient_at_the_conditional_prediction():
    score = score_of(lambda x, t: (x, 3 * x), lambda told, x, t: told.square().flatten(1).sum(1), scale=2.0)
    x = torch.randn(2, 3, 4, 4)
    prediction, pull = score(x, 5)
    torch.testing.assert_close(pull, 2.0 * 18 * x)
    assert prediction.equal(x) and not prediction.requires_grad
