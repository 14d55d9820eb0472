import pytest
import torch
from torch import nn

from models.blocks import Attention
from stages.engine.config import load
from stages.engine.muon import WIDEST, hidden_weights, orthogonalised
from stages.engine.optim import Optimizer


@pytest.mark.parametrize("shape", [(3, 20, 20), (2, 16, 144), (2, 90, 24)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_come_close_to_one_and_the_vectors_stay(shape, dtype):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-4
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ orthogonalised(matrices, dtype).float() @ vh.mT
    values = inner.diagonal(dim1=1, dim2=2)
    assert values.min() > 0.5
    assert values.max() < 1.4
    assert (inner - torch.diag_embed(values)).abs().max() < (0.08 if dtype == torch.bfloat16 else 1e-3)


def test_singular_values_end_where_the_docstring_says():
    """For two values of which the smaller one is a given share of the norm, from a hundredth on."""
    share = torch.logspace(-2, -1e-4, 300, dtype=torch.float64)
    matrices = torch.diag_embed(torch.stack([share, (1 - share.square()).sqrt()], dim=1))
    values = orthogonalised(matrices, torch.float64).diagonal(dim1=1, dim2=2).abs()
    assert values.min().item() == pytest.approx(0.68, abs=0.005)
    assert values.max().item() == pytest.approx(1.20, abs=0.005)


def test_no_gradient_makes_no_step():
    assert torch.equal(orthogonalised(torch.zeros(1, 4, 8), torch.float32), torch.zeros(1, 4, 8))


def test_layers_that_enter_or_leave_vectors_embeddings_and_wide_layers_are_adams():
    convolution, attention = nn.Conv2d(32, 32, 3), Attention(32, 2)
    network = nn.Sequential(nn.Conv2d(6, 32, 3), convolution, attention, nn.Conv2d(32, 6, 3), nn.Linear(32, 32))
    network.append(nn.Embedding(24, 32))
    widening = nn.Conv2d(WIDEST, WIDEST + 1, 1)
    network.extend([widening, nn.Conv2d(WIDEST + 1, WIDEST + 1, 1)])
    inner = (attention.to_query, attention.to_key_value, attention.to_out)
    assert {id(w) for w in hidden_weights(network)} == {id(layer.weight) for layer in (convolution, widening, *inner)}


def test_a_step_is_as_large_as_adams_in_the_mean_square():
    """It also follows the gradient's directions, for a convolution in either memory format."""
    moved = []
    for memory in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        network = nn.Conv2d(32, 32, 3).to(memory_format=memory)
        before = network.weight.detach().clone()
        settings = load("configs/smoke.yaml").ldm.model_copy(update={"optimizer": "muon", "warmup": 0, "steps": 9})
        optimizer = Optimizer(network, settings)
        optimizer.update(network(torch.randn(16, 32, 5, 5)).square().mean(), 0)
        moved.append(network.weight.detach() - before)
    torch.testing.assert_close(*moved, atol=2e-6, rtol=1e-3)
    expected = settings.learning_rate * 0.2  # as if all singular values were 1; they are .7 to 1.1
    assert moved[0].square().mean().sqrt().item() == pytest.approx(expected, rel=0.25)
