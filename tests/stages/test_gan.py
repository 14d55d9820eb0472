"""What a step of the GAN does to weights, and how the auxiliary loss is weighted, on a few noise pictures."""

from types import SimpleNamespace

import pytest
import torch

import stages.gan
from models.adversarial import contrastive_loss
from models.choices import GENERATOR_CONDITIONS
from models.condition import Condition, joined
from models.layouts import LayoutPrior
from stages.engine.config import load
from stages.engine.draws import Draws
from stages.engine.errors import UserError
from stages.gan import GanSampler, GanTask, auxiliary_weight, build_critic, build_generator
from tests.conftest import HERE, SMOKE
from tests.stages.handful import DEVICE, context_with, noise_pictures

CLIP = 0.03125
POOLED = ("gan.generator.entry=vector", "gan.critic.read=pooled", "gan.critic.pool=flatten")
PLACED = (
    *("gan.generator.entry=map", "gan.generator.condition=modulation"),
    *("gan.critic.read=places", "gan.critic.pool=sum"),
)


@pytest.fixture
def task_of(monkeypatch, tmp_path):
    """Returns a function that builds a task on the smoke configuration with changes, without an evaluator."""
    monkeypatch.setattr(stages.gan, "load_evaluator", lambda context, classes: (None, {}))
    dataset = noise_pictures(tmp_path)

    def make(*changes):
        return GanTask(context_with("gan.batch=4", "gan.generator.channels=[8,8,8,8]", *changes), dataset, None)

    return make


def draws(task):
    return Draws(0, "gan", 0, task.settings.batch, DEVICE)


def critic_step(task):
    of_the_step, index = draws(task), torch.arange(task.settings.batch)
    (fake,) = task._fakes([index], of_the_step)
    task._critic_step(0, of_the_step, index, fake)


def largest(task):
    return {name: weight.abs().max().item() for name, weight in task.critic.named_parameters()}


def test_after_a_critic_step_of_wgan_all_its_weights_lie_within_the_clip(task_of):
    task = task_of("gan.loss=wgan", f"gan.weight_clip={CLIP}")
    before = {n: w.clone() for n, w in task.critic.named_parameters()}
    critic_step(task)
    assert max(largest(task).values()) == CLIP
    for name, weight in task.critic.named_parameters():  # a step of Adam is at most the learning rate
        moved = (weight - before[name].clamp(-CLIP, CLIP)).abs()
        assert moved.max() <= 1.01 * task.settings.learning_rate, name
    assert not torch.equal(task.critic.enter.weight, before["enter.weight"].clamp(-CLIP, CLIP)), "nothing was learned"


@pytest.mark.parametrize("loss", ["wgan-gp", "hinge"])
def test_other_losses_clip_nothing(task_of, loss):
    task = task_of(f"gan.loss={loss}", f"gan.weight_clip={CLIP}")
    before = largest(task)
    critic_step(task)
    assert largest(task) == pytest.approx(before, abs=1.01 * task.settings.learning_rate)
    assert max(before.values()) > 2 * CLIP


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [2.0, 2.0, 2.0]), ("rising", [0.0, 1.0, 1.8]), ("falling", [2.0, 1.0, 0.2])],
)
def test_the_auxiliary_weight_at_the_first_the_middle_and_the_last_step(schedule, expected):
    settings = SimpleNamespace(steps=10, auxiliary=2.0, auxiliary_schedule=schedule)
    assert [auxiliary_weight(settings, step) for step in (0, 5, 9)] == pytest.approx(expected)


def test_the_auxiliary_schedule_is_the_generator_s_alone(task_of):
    """At the first step `falling` has the weight of `constant`, and `rising` has 0; the critic learns the same."""
    critics, generators = {}, {}
    for schedule in ("constant", "falling", "rising"):
        task = task_of(f"gan.auxiliary_schedule={schedule}", "gan.critic_steps=1")
        task.step(0, draws(task))
        critics[schedule] = torch.cat([w.detach().flatten() for w in task.critic.parameters()])
        generators[schedule] = torch.cat([w.detach().flatten() for w in task.generator.parameters()])
    assert torch.equal(critics["constant"], critics["falling"]) and torch.equal(critics["constant"], critics["rising"])
    assert torch.equal(generators["constant"], generators["falling"])
    assert not torch.equal(generators["constant"], generators["rising"])


def test_gamma_goes_from_its_first_to_its_last_value_along_half_a_cosine(task_of, monkeypatch):
    task, seen, loss_of = task_of("gan.loss=r3gan", "gan.gamma=[2.0,0.5]", "gan.steps=12"), [], stages.gan.critic_loss
    monkeypatch.setattr(stages.gan, "critic_loss", lambda *given: seen.append(given[5].gamma) or loss_of(*given))
    index = torch.arange(4)
    for step in (0, 4, 6, 12):
        of_the_step = draws(task)
        task._critic_step(step, of_the_step, index, *task._fakes([index], of_the_step))
    assert seen == pytest.approx([2.0, 1.625, 1.25, 0.5])


@pytest.mark.parametrize(("share", "rows"), [(1.0, 4), (0.5, 2), (0.01, 1)])
def test_the_penalty_is_measured_on_its_share_of_the_batch(task_of, monkeypatch, share, rows):
    task, seen, loss_of = task_of(f"gan.penalty_share={share}"), [], stages.gan.critic_loss
    monkeypatch.setattr(stages.gan, "critic_loss", lambda *given: seen.append(given[8]) or loss_of(*given))
    critic_step(task)
    assert seen == [rows]


def test_the_critic_may_have_a_learning_rate_of_its_own(task_of):
    for change, expected in (("gan.critic_learning_rate=null", 1e-3), ("gan.critic_learning_rate=4e-3", 4e-3)):
        task = task_of("gan.learning_rate=1e-3", change)
        assert [optimizer.settings.learning_rate for optimizer in task.optimizers] == [1e-3, expected]


@pytest.mark.parametrize(
    ("condition", "heads"),
    [
        ("projection", {"project", "there"}),
        ("auxiliary", {"classify"}),
        ("projection+auxiliary", {"project", "there", "classify"}),
    ],
)
def test_a_critic_that_reads_at_places_is_conditioned_as_configured(task_of, condition, heads):
    task = task_of(*PLACED[2:], f"gan.critic.condition={condition}")
    names = {name.split(".")[0] for name, _ in task.critic.named_parameters()}
    assert names == {"enter", "blocks", "score"} | heads
    assert ("auxiliary_fake" in task.step(0, draws(task))) == ("classify" in heads)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_critic_that_contrasts_is_shown_the_sets_of_the_whole_batch(task_of, monkeypatch, parts):
    """In both steps, also in parts of a batch; without other sets the loss would be a plain classification."""
    task = task_of("gan.critic.condition=projection+contrast", f"gan.accumulate={parts}")
    of_the_step, index = draws(task), torch.arange(4)
    real, condition = task._real_batch(index, None), task.dataset.conditions[index]
    with torch.no_grad():
        expected = contrastive_loss(task._score(real, condition)[1], condition.labels, condition.labels)
    (fake,) = task._fakes([index], of_the_step)
    found = task._critic_step(0, of_the_step, index, fake)["auxiliary_real"]
    torch.testing.assert_close(found.detach(), expected, rtol=1e-3, atol=1e-4)

    seen = []

    def watched(logits, asked, average, others):
        seen.append(others)
        return contrastive_loss(logits, asked.labels, others)

    monkeypatch.setattr(stages.gan, "auxiliary_loss", watched)
    task._generator_step(0, *draws(task).pictures(task.rows, 0, 1), of_the_step)
    assert len(seen) == parts and all(len(others) == 4 for others in seen)


def shapes(*changes):
    """Returns the names and shapes of both networks' weights."""
    settings = load(HERE / SMOKE, [*changes]).gan
    networks = build_generator(settings, 3, 0, 64), build_critic(settings, 3, 0, 64)
    return [{name: weight.shape for name, weight in network.state_dict().items()} for network in networks]


@pytest.mark.parametrize("form", [POOLED, PLACED], ids=["pooled", "placed"])
@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ("gan.generator.noise=5", False),
        ("gan.generator.channels=[8,8,8,8,8]", False),
        ("gan.generator.label_width=5", False),
        ("gan.generator.condition=batch-norm", True),
        ("gan.generator.condition=concatenation", True),
        ("gan.critic.channels=[8,8,8,8,8]", False),
        ("gan.critic.pool=flatten", True),
        ("gan.critic.condition=projection", False),
        ("gan.critic.condition=auxiliary", False),
        ("gan.critic.condition=concatenation", True),
        ("gan.body=dcgan", False),
        ("gan.attention=true", True),
    ],
)
def test_no_key_of_the_networks_is_ignored(form, change, refused):
    """Each key changes the networks; what a map of places does not support is refused, with the key named."""
    if form == PLACED and refused:
        with pytest.raises(UserError, match=change.partition("=")[0]):
            shapes(*form, change)
    else:
        other = () if form == PLACED else ("gan.generator.condition=modulation", "gan.critic.pool=sum")
        assert shapes(*form, *other, change) != shapes(*form, *other)


@pytest.mark.parametrize(("widths", "made"), [("[8,8]", False), ("[8,8,8]", True)])
def test_a_map_takes_a_width_fewer_than_a_vector(widths, made):
    """There are three resolutions from 8x8 to the 32x32 of stem 2, and four from 4x4."""
    for key in ("generator", "critic"):
        with pytest.raises(UserError, match=rf"gan.{key}.channels .* at least 4"):
            shapes(f"gan.{key}.channels={widths}")
        if made:
            shapes(*PLACED, f"gan.{key}.channels={widths}")
        else:
            with pytest.raises(UserError, match=rf"gan.{key}.channels .* at least 3"):
                shapes(*PLACED, f"gan.{key}.channels={widths}")


@pytest.mark.parametrize("size", [32, 128, 256])
@pytest.mark.parametrize("form", [POOLED, PLACED], ids=["pooled", "placed"])
@pytest.mark.parametrize("space, stem", [("pixels", 1), ("pixels", 2), ("pixels", 4), ("pixels", 8), ("latents", 1)])
def test_both_networks_follow_the_size_of_the_pictures(form, stem, size, space):
    """A section that suffices for 64 suffices for any size; maps of places have a cell for 8x8 pixels."""
    widths = ["gan.generator.channels=[16,8,8,8,8]", "gan.critic.channels=[8,8,8,8,16]"]
    settings = load(HERE / SMOKE, [*form, *widths, f"data.size={size}", f"gan.space={space}", f"gan.stem={stem}"]).gan
    generator, critic = (build(settings, 3, 6, size) for build in (build_generator, build_critic))
    condition = Condition.of_lists([[0, 1], [2]], 3, [[(0.2, 0.3), (0.7, 0.6)], [(0.5, 0.5)]])
    made = generator(generator.noise_of(lambda *shape: torch.randn(2, *shape), 2), condition)
    side = size // (8 if space == "latents" else settings.stem)
    assert made.shape == (2, 6 if space == "latents" else 3 * settings.stem**2, side, side)
    scores, logits = critic(made, condition)
    assert scores.shape == (2,)
    assert logits is not None and logits.shape[2:] == ((size // 8, size // 8) if form == PLACED else ())


def test_widths_that_a_larger_picture_lacks_are_those_of_the_smallest_map():
    settings = load(HERE / SMOKE, ["data.size=256", "gan.generator.channels=[16,8,8,24]"]).gan
    widths = [block.conv1.in_channels for block in build_generator(settings, 3, 0, 256).blocks]
    assert widths == [16, 16, 16, 8, 8], "256 / stem 2 is five doublings of 4x4"
    assert [block.conv1.in_channels for block in build_generator(settings, 3, 0, 64).blocks] == [16, 8, 8]


@pytest.mark.parametrize("condition", GENERATOR_CONDITIONS)
def test_what_all_critic_steps_are_shown_is_what_each_batch_alone_would_be(task_of, condition):
    task = task_of("gan.critic_steps=3", f"gan.generator.condition={condition}")
    rows = [torch.tensor([0, 1, 2, 3]), torch.tensor([4, 5, 6, 7]), torch.tensor([7, 0, 2, 1])]
    together = task._fakes(rows, draws(task))
    of_the_step = draws(task)
    for index, fake in zip(rows, together, strict=True):
        noise = of_the_step.normal(task.settings.generator.noise)
        torch.testing.assert_close(fake, task.generator(noise, task.dataset.conditions[index]))
        assert not fake.requires_grad


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_picture_is_the_same_alone_and_beside_one_of_more_objects(number):
    context = context_with(*PLACED, "eval.batch=4")
    torch.manual_seed(0)
    generator = build_generator(context.config.gan, 8, 0, 64).eval()
    sampler = GanSampler(context, generator, context.config.gan, None, LayoutPrior())
    spots = [(0.2, 0.3), (0.7, 0.6), (0.4, 0.8), (0.8, 0.2), (0.5, 0.5)]
    few, five = (Condition.of_lists([list(range(n))], 8, [spots[:n]]) for n in (number, 5))
    alone = sampler.sample(few, [(0, 7)], context.config.eval)
    beside = sampler.sample(joined([five, few]), [(0, 3), (0, 7)], context.config.eval)
    torch.testing.assert_close(beside[1:], alone)
    assert not torch.allclose(beside[:1], alone, atol=1e-2)
