import pytest
import torch

from models.blocks import Attention, Downsample, ResidualBlock, SpatialTransformer, Upsample, sinusoidal


def test_residual_block_starts_as_its_skip():
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(ResidualBlock(8, 8)(x), x)


def test_resampling_shapes_and_a_smooth_start():
    x = torch.randn(2, 8, 4, 4)
    assert Downsample(8, 12)(x).shape == (2, 12, 2, 2)
    up = Upsample(8, 6)(x)
    assert up.shape == (2, 6, 8, 8)
    assert torch.equal(up[:, :, ::2, ::2], up[:, :, 1::2, 1::2])


def test_attention_equals_torchs():
    torch.manual_seed(0)
    attention = Attention(16, 4, 12)
    torch.nn.init.normal_(attention.to_out.weight)
    x, context = torch.randn(2, 5, 16), torch.randn(2, 7, 12)
    mask = torch.rand(2, 7) < 0.7
    mask[:, 0] = True
    reference = torch.nn.MultiheadAttention(16, 4, kdim=12, vdim=12, batch_first=True, bias=False)
    key, value = attention.to_key_value.weight.chunk(2)
    with torch.no_grad():
        reference.q_proj_weight.copy_(attention.to_query.weight)
        reference.k_proj_weight.copy_(key)
        reference.v_proj_weight.copy_(value)
        reference.out_proj.weight.copy_(attention.to_out.weight)
    expected = reference(x, context, context, key_padding_mask=~mask)[0]
    torch.testing.assert_close(attention(x, context, mask), expected, atol=1e-5, rtol=1e-4)


def test_sinusoidal_tells_times_apart():
    embedding = sinusoidal(torch.arange(1000), 64)
    assert embedding.shape == (1000, 64)
    assert torch.cdist(embedding, embedding).add(torch.eye(1000) * 9).min() > 1e-3


@pytest.mark.parametrize("norm", ["group", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_gradients_the_bits_are_the_same_and_the_inputs_stay(norm, dtype):
    """Without gradients, sums and activations are written over what nobody needs any more."""
    torch.manual_seed(0)
    block = ResidualBlock(16, 32, 12, norm)
    transformer = SpatialTransformer(32, 2, 8, depth=2, expansion=1)
    for parameter in (*block.parameters(), *transformer.parameters()):
        torch.nn.init.normal_(parameter, std=0.3)
    x, embedding, context = torch.randn(2, 16, 4, 4), torch.randn(2, 12), torch.randn(2, 3, 8)
    given, mask = x.clone(), torch.tensor([[True, True, False], [True, False, False]])

    def made():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            h = block(x, embedding)
            return h, transformer(h, transformer.offered(context), mask)

    with_gradients = [h.detach().clone() for h in made()]
    with torch.no_grad():
        without = made()
    assert torch.equal(x, given)
    for expected, found in zip(with_gradients, without, strict=True):
        assert expected.dtype == found.dtype
        assert torch.equal(expected, found)
    torch.testing.assert_close(with_gradients[0], without[0])  # still there after the transformer read it
