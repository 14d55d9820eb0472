import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.adversarial import gradient_penalty
from models.choices import CRITIC_CONDITIONS, GENERATOR_CONDITIONS
from models.condition import Condition
from models.wgan import ConditionalNorm, Critic, CriticBlock, Generator, GeneratorBlock, SelfAttention


def one_each(first, last):
    """Returns a row for each of the objects `first` to `last`, without the last."""
    return Condition.of_lists([[i] for i in range(first, last)], 24)


@pytest.mark.parametrize("pool", ["flatten", "sum"])
def test_the_score_depends_on_the_label(pool):
    torch.manual_seed(0)
    critic = Critic(24, 3, 64, (8, 8, 8, 8, 8), pool)
    images = torch.randn(4, 3, 64, 64)
    first, second = one_each(0, 4), one_each(4, 8)
    assert (critic(images, first)[0] - critic(images, second)[0]).abs().min() > 1e-4


@pytest.mark.parametrize(
    ("size", "outputs", "channels"), [(64, 3, (16, 16, 8, 8, 8)), (32, 12, (16, 8, 8, 8)), (8, 6, (16, 16, 16))]
)
@pytest.mark.parametrize("condition", GENERATOR_CONDITIONS)
def test_generator_shapes_and_its_use_of_labels(size, outputs, channels, condition):
    torch.manual_seed(0)
    generator = Generator(24, outputs, size, 64, channels, 8, condition, bounded=True)
    noise = torch.randn(2, 64)
    images = generator(noise, one_each(0, 2))
    assert images.shape == (2, outputs, size, size)
    assert images.abs().max() <= 1
    assert not torch.allclose(images, generator(noise, one_each(2, 4)))


def test_auxiliary_head_classifies_every_label():
    logits = Critic(24, 6, 8, (8, 8), "sum", "auxiliary")(torch.randn(3, 6, 8, 8), one_each(0, 3))[1]
    assert logits.shape == (3, 24)


def test_too_few_widths_are_refused():
    with pytest.raises(ValueError, match="needs at least 5"):
        Generator(24, 3, 64, 64, (8, 8), 8, "concatenation", bounded=True)
    with pytest.raises(ValueError, match="needs at least 5"):
        Critic(24, 3, 64, (8, 8), "sum")


@pytest.mark.parametrize(("channels", "heads"), [(8, 1), (128, 2), (200, 2), (257, 1), (512, 8)])
def test_attention_takes_every_width(channels, heads):
    layer = SelfAttention(channels)
    assert layer.attention.heads == heads
    assert layer(torch.randn(1, channels, 2, 2)).shape == (1, channels, 2, 2)


@pytest.mark.parametrize("condition", CRITIC_CONDITIONS)
@pytest.mark.parametrize("body", ["residual", "dcgan"])
@pytest.mark.parametrize("attention", [False, True])
def test_every_critic_has_a_penalty_with_a_gradient(condition, body, attention):
    torch.manual_seed(0)
    critic = Critic(24, 6, 8, (16, 16, 16), "sum", condition, body, attention)
    real, fake, labels = torch.randn(4, 6, 8, 8), torch.randn(4, 6, 8, 8), one_each(0, 4)
    penalty, _ = gradient_penalty(critic, real, fake, labels, torch.rand(4, 1, 1, 1))
    penalty.backward()
    assert critic.enter.weight.grad.abs().sum() > 0
    differs = not torch.equal(critic(real, labels)[0], critic(real, one_each(4, 8))[0])
    assert differs == (condition != "auxiliary")


def test_the_contrasted_evidence_is_what_labels_add_to_the_score():
    torch.manual_seed(0)
    critic = Critic(24, 6, 8, (16, 16, 16), "sum", "projection+contrast")
    x, asked, nothing = torch.randn(4, 6, 8, 8), one_each(0, 4), Condition.of_lists([[]] * 4, 24)
    score, evidence = critic(x, asked)
    torch.testing.assert_close(score - critic(x, nothing)[0], (evidence * asked.labels).sum(1))
    assert critic.state_dict().keys() == Critic(24, 6, 8, (16, 16, 16), "sum", "projection").state_dict().keys()


def test_the_penalty_has_nearly_the_same_gradient_in_bfloat16():
    torch.manual_seed(0)
    critic = Critic(24, 6, 8, (32, 32, 32), "sum", "projection+auxiliary")
    real, fake, labels = torch.randn(16, 6, 8, 8), torch.randn(16, 6, 8, 8), one_each(0, 16)
    mix, found = torch.rand(16, 1, 1, 1), []
    weights = [w for name, w in critic.named_parameters() if not name.startswith("classify") and name != "score.bias"]
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            penalty, slope = gradient_penalty(critic, real, fake, labels, mix)
        gradients = torch.autograd.grad(penalty, weights)
        found.append((penalty.item(), slope.item(), torch.cat([g.flatten() for g in gradients])))
    exact, rounded = found
    assert exact[:2] == pytest.approx(rounded[:2], rel=0.01)
    assert torch.cosine_similarity(exact[2], rounded[2], dim=0) > 0.999
    assert not torch.equal(exact[2], rounded[2])


@pytest.mark.parametrize("condition", GENERATOR_CONDITIONS)
@pytest.mark.parametrize("attention", [False, True])
def test_the_dcgan_body_makes_pictures(condition, attention):
    generator = Generator(24, 3, 64, 16, (16, 16, 8, 8, 8), 8, condition, True, "dcgan", attention)
    noise = torch.randn(3, 16)
    images = generator(noise, one_each(0, 3))
    assert images.shape == (3, 3, 64, 64)
    assert not torch.allclose(images, generator(noise, one_each(3, 6)))


def test_a_style_of_zero_leaves_the_norm_as_it_is():
    norm, x = ConditionalNorm(8, 4, batch=False), torch.randn(2, 8, 4, 4)
    nn.init.zeros_(norm.film.weight)
    nn.init.zeros_(norm.film.bias)
    assert norm(x, torch.randn(2, 4)).equal(norm.norm(x))


def test_labels_enter_the_generator_on_the_scale_of_the_noise():
    torch.manual_seed(0)
    for condition in GENERATOR_CONDITIONS:
        generator = Generator(24, 3, 8, 64, (16, 16), 64, condition, bounded=True)
        assert generator.label.weight.std().item() == pytest.approx(1.0, abs=0.1)
        batch = any(isinstance(module, nn.BatchNorm2d) for module in generator.blocks.modules())
        assert batch == (condition == "batch-norm")


def test_a_block_whose_convolutions_are_zero_only_resizes():
    x = torch.randn(2, 8, 4, 4)
    up, down = GeneratorBlock(8, 8, True, None, False), CriticBlock(8, 8, True)
    for block in (up, down):
        nn.init.zeros_(block.conv2.weight)
        nn.init.zeros_(block.conv2.bias)
    assert up(x, None).equal(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    torch.testing.assert_close(down(x), F.avg_pool2d(x, 2))


def sides_of(modules, run):
    """Returns the side of each module's output in one forward pass."""
    found = []
    hooks = [m.register_forward_hook(lambda module, given, made: found.append(made.shape[-1])) for m in modules]
    run()
    for hook in hooks:
        hook.remove()
    return found


def test_attention_is_at_8x8_and_further_blocks_at_the_full_resolution():
    asked, widths = one_each(0, 2), (8, 8, 8, 8)
    critic = Critic(24, 6, 16, widths, "sum", attention=True)
    generator = Generator(24, 6, 16, 4, widths, 8, "modulation", bounded=False, attention=True)
    for network, run, blocks in (
        (critic, lambda: critic(torch.randn(2, 6, 16, 16), asked), [16, 8, 4]),
        (generator, lambda: generator(torch.randn(2, 4), asked), [8, 16, 16]),
    ):
        assert sides_of(network.blocks, run) == blocks
        assert sides_of([network.attention], run) == [8]


@pytest.mark.parametrize("pool", ["flatten", "sum"])
def test_features_are_activated_and_pooled(pool):
    critic, x = Critic(24, 6, 8, (8, 8), pool), torch.randn(2, 6, 8, 8)
    maps = F.silu(critic.blocks[0](critic.enter(x)))
    torch.testing.assert_close(critic.features(x), maps.flatten(1) if pool == "flatten" else maps.sum((2, 3)))


def test_scores_are_float32_under_autocast():
    critic = Critic(24, 6, 8, (8, 8), "sum", "projection+auxiliary")
    with torch.autocast("cpu", torch.bfloat16):
        score, logits = critic(torch.randn(2, 6, 8, 8), one_each(0, 2))
    assert (score.dtype, logits.dtype) == (torch.float32, torch.float32)


def test_bounded_pictures_are_the_tangent_of_unbounded_ones():
    free, bounded = (Generator(24, 3, 8, 4, (8, 8), 8, "modulation", bounded=b) for b in (False, True))
    bounded.load_state_dict(free.state_dict())
    noise, asked = 5 * torch.randn(2, 4), one_each(0, 2)
    assert bounded(noise, asked).equal(free(noise, asked).tanh())
