import tomllib
from importlib.metadata import version
from typing import get_args

import pytest
import torch
from packaging.requirements import Requirement
from vector_quantize_pytorch import FSQ, VectorQuantize
from vector_quantize_pytorch.vector_quantize_pytorch import Codebook

from models.codebooks import IndexedCodebook, Quantizer, Residual
from models.quantizer import QUANTIZERS, FiniteScalar
from models.vqvae import code_counts, perplexity
from stages.engine.schema import Vae
from tests.conftest import HERE

OPTIONS = {"decay": 0.9, "rotation_trick": False}


def pair(codes=64, dim=6, **options):
    """Returns our quantiser and the library's with the same codebook."""
    ours = Quantizer(dim, codes, commitment=0.25, dead_below=0.0, init="uniform", **OPTIONS)
    library = VectorQuantize(
        dim=dim,
        codebook_size=codes,
        accept_image_fmap=True,
        commitment_weight=0.25,
        threshold_ema_dead_code=0,
        **OPTIONS,
    )
    library._codebook.load_state_dict(ours._codebook.state_dict())
    return ours, library


def test_equals_the_library_forward_backward_and_in_its_averages():
    torch.manual_seed(0)
    ours, library = pair()
    for _ in range(4):
        x = torch.randn(4, 6, 8, 8) * 0.1
        mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        quantized, indices, loss = ours(mine)
        quantized2, indices2, loss2 = library(theirs)
        assert torch.equal(indices, indices2)
        torch.testing.assert_close(quantized, quantized2)
        torch.testing.assert_close(loss.squeeze(), loss2.squeeze())
        (quantized.square().sum() + loss.sum()).backward()
        (quantized2.square().sum() + loss2.sum()).backward()
        torch.testing.assert_close(mine.grad, theirs.grad)
        for name in ("embed", "embed_avg", "cluster_size"):
            torch.testing.assert_close(getattr(ours._codebook, name), getattr(library._codebook, name))


def test_eval_changes_nothing_and_lookup_inverts_nearest():
    ours, _ = pair()
    before = ours._codebook.embed.clone()
    ours.eval()
    x = torch.randn(2, 6, 8, 8) * 0.1
    quantized, indices, _ = ours(x)
    assert torch.equal(ours._codebook.embed, before)
    assert torch.equal(ours.nearest(x), indices)
    torch.testing.assert_close(ours.lookup(indices), quantized)
    assert torch.equal(ours.nearest(ours.lookup(indices)), indices)


def test_autocast_does_not_change_which_code_is_nearest():
    ours, _ = pair()
    latents = torch.randn(4, 6, 8, 8) * 3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ours.nearest(latents)
    assert torch.equal(inside, ours.nearest(latents))
    assert torch.equal(inside, ours.eval()(latents)[1])


def test_kmeans_starts_from_the_first_training_batch_and_dead_codes_are_replaced():
    torch.manual_seed(0)
    quantizer = Quantizer(6, 16, init="kmeans", dead_below=1.0)
    quantizer.eval()(torch.randn(2, 6, 8, 8))
    assert not quantizer._codebook.initted
    quantizer.train()(torch.randn(4, 6, 8, 8))
    assert quantizer._codebook.initted
    quantizer._codebook.embed[0, 3] = 100.0
    quantizer._codebook.cluster_size[0, 3] = 0.0
    quantizer._codebook.embed_avg[0, 3] = 0.0
    quantizer(torch.randn(4, 6, 8, 8))
    assert quantizer._codebook.embed[0, 3].abs().max() < 10


@pytest.mark.parametrize(("counts", "expected"), [([5, 5, 5, 5], 4.0), ([9, 0, 0, 0], 1.0)])
def test_perplexity_counts_codes_in_equal_use(counts, expected):
    assert perplexity(torch.tensor(counts)).item() == pytest.approx(expected)


def test_starts_by_k_means_over_many_batches_with_the_counts_of_one():
    torch.manual_seed(0)
    quantizer = Quantizer(6, 32, dead_below=0.0)
    centres = torch.randn(32, 6) * 3
    latents = (centres[torch.randint(32, (64 * 64,))] + 0.01 * torch.randn(64 * 64, 6)).view(64, 8, 8, 6)
    latents = latents.permute(0, 3, 1, 2)
    quantizer.start(latents, batches=4)
    book = quantizer._codebook
    error = (quantizer.lookup(quantizer.nearest(latents)) - latents).square().mean()
    assert error < 0.5 * latents.square().mean(), "codes are not near the latents"
    assert book.cluster_size.sum() == pytest.approx(64 * 64 / 4)
    torch.testing.assert_close(book.embed, book.embed_avg / book.cluster_size[..., None], rtol=1e-3, atol=1e-3)
    begun = book.embed.clone()
    quantizer.start(latents + 1, batches=4)
    assert torch.equal(book.embed, begun), "a second start must change nothing"


def test_finite_scalars_round_each_channel_and_pass_the_gradient():
    quantizer = FiniteScalar(3, 5)
    latents = torch.tensor([0.4, -1.6, 2.4])[None, :, None, None].requires_grad_()
    quantised, indices, loss = quantizer(latents)
    assert quantised.flatten().tolist() == [0, -2, 2] and loss == 0
    assert indices.tolist() == [[[2 + 0 * 5 + 4 * 25]]]
    quantised.sum().backward()
    assert (latents.grad == 1).all()


def test_finite_scalars_indices_and_levels_undo_one_another():
    quantizer = FiniteScalar(3, 5)
    indices = torch.arange(125).view(1, 5, 25)
    assert quantizer.nearest(quantizer.lookup(indices)).equal(indices)
    assert quantizer.lookup(indices).abs().max() == 2 and quantizer.codebook_size == 125


def test_finite_scalars_number_their_codes_as_the_library_does():
    ours, library = FiniteScalar(3, 5), FSQ([5, 5, 5])
    indices = torch.arange(125).view(1, 5, 25)
    codes = library.indices_to_codes(indices.view(1, -1)).view(5, 25, 3) * 2  # the library's lie in [-1, 1]
    torch.testing.assert_close(ours.lookup(indices)[0].permute(1, 2, 0), codes)


def test_bounded_latents_stay_within_half_a_level_and_hardly_change_near_zero():
    quantizer = FiniteScalar(2, 7)
    latents = torch.tensor([-1e4, -3.0, -0.01, 0.0, 0.01, 3.0, 1e4])[None, None, None]
    found = quantizer.bounded(latents).flatten()
    assert found.abs().max() <= 3.5 and (found.diff() > 0).all()
    torch.testing.assert_close(found[2:5], latents.flatten()[2:5], atol=1e-6, rtol=1e-4)


def test_residual_codes_are_the_sum_of_what_each_codebook_codes():
    torch.manual_seed(0)
    quantizer = Residual(6, 16, 2, 0.9, 0.25, 0.0)
    latents = torch.randn(4, 6, 8, 8)
    quantizer.train()
    for _ in range(20):
        _, _, loss = quantizer(latents)
    quantizer.eval()
    quantised, indices, _ = quantizer(latents)
    assert indices.shape == (4, 8, 8) and loss > 0
    books = quantizer.book.codebooks
    summed = books[0][indices % 16] + books[1][indices // 16]
    torch.testing.assert_close(quantised, summed.permute(0, 3, 1, 2))
    torch.testing.assert_close(quantizer.lookup(indices), quantised)
    assert quantizer.nearest(latents).equal(indices)
    one = Residual(6, 16, 1, 0.9, 0.25, 0.0).train()
    for _ in range(20):
        one(latents)
    error = (quantised - latents).square().mean()
    assert error < 0.8 * (one.eval()(latents)[0] - latents).square().mean()


def test_residual_codes_pass_the_gradient_straight_through_once():
    torch.manual_seed(0)
    quantizer = Residual(6, 16, 3, 0.9, 0.0, 0.0).train()
    latents = torch.randn(4, 6, 8, 8, requires_grad=True)
    quantizer(latents)[0].sum().backward()
    torch.testing.assert_close(latents.grad, torch.ones_like(latents))


def test_residual_codebooks_stay_untrained_by_nearest_and_in_eval_mode():
    quantizer = Residual(6, 16, 2, 0.9, 0.25, 1.0)
    latents = torch.randn(1, 6, 2, 2)
    assert quantizer.train().nearest(latents).shape == (1, 2, 2) and quantizer.training
    quantizer.eval()(latents)
    assert not any(layer._codebook.initted for layer in quantizer.book.layers)


def test_dead_residual_codes_are_replaced():
    torch.manual_seed(0)
    quantizer = Residual(6, 16, 2, 0.9, 0.25, 1.0).train()
    quantizer(torch.randn(4, 6, 8, 8))
    for layer in quantizer.book.layers:
        book = layer._codebook
        book.embed[0, 3], book.embed_avg[0, 3], book.cluster_size[0, 3] = 100.0, 0.0, 0.0
    quantizer(torch.randn(4, 6, 8, 8))
    assert quantizer.book.codebooks.abs().max() < 10


def test_the_configurations_choices_are_those_of_the_registry():
    words = get_args(Vae.model_fields["quantizer"].annotation)
    assert set(words) == QUANTIZERS.keys()


@pytest.mark.parametrize("quantizer", [FiniteScalar(6, 7), Residual(6, 16, 2, 0.9, 0.25, 0.0).eval()])
def test_autocast_changes_no_quantisers_indices(quantizer):
    latents = quantizer.bounded(3 * torch.randn(4, 6, 8, 8, generator=torch.Generator().manual_seed(0)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quantised, indices, _ = quantizer(latents)
    assert indices.dtype == torch.int64 and indices.min() >= 0 and indices.max() < quantizer.codebook_size
    assert indices.equal(quantizer.nearest(latents))
    torch.testing.assert_close(quantised, quantizer.lookup(indices))


@pytest.mark.parametrize("rotation_trick", [False, True])
def test_the_decoder_is_given_codes_under_autocast_too(rotation_trick):
    torch.manual_seed(0)
    quantizer = Quantizer(6, 32, rotation_trick=rotation_trick, init="uniform")
    book = quantizer._codebook.embed[0].clone()  # before training moves it
    latents = torch.randn(4, 6, 8, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quantised, indices, _ = quantizer.train()(latents)
    torch.testing.assert_close(quantised, book[indices].permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dead", [0, 1, 5, 16])
def test_dead_codes_are_replaced_as_the_library_does_it(dead):
    """By the same draws, although on a GPU the library would ask how many are dead."""
    ours, library = (IndexedCodebook(6, 16, threshold_ema_dead_code=1.0) for _ in range(2))
    library.load_state_dict(ours.state_dict())
    vectors, which = torch.randn(1, 20, 6), torch.randperm(16)[:dead]
    for book in (ours, library):
        book.cluster_size[0, which] = 0.5
    torch.manual_seed(1)
    ours._replace_dead(vectors)
    torch.manual_seed(1)
    Codebook.expire_codes_(library, vectors)
    for name in ("embed", "embed_avg", "cluster_size"):
        assert torch.equal(getattr(ours, name), getattr(library, name)), name


@pytest.mark.parametrize("dead", [3, 12])
def test_each_dead_code_gets_a_vector_of_its_own_and_as_many_as_there_are(dead):
    book = IndexedCodebook(6, 16, threshold_ema_dead_code=1.0)
    before, vectors = book.embed.clone(), torch.randn(1, 5, 6)
    book.cluster_size[0, :dead] = 0.5
    book._replace_dead(vectors)
    changed = (book.embed != before).any(-1)[0]
    assert changed[:dead].sum() == min(dead, 5) and not changed[dead:].any()
    equal = (book.embed[0, changed, None] == vectors).all(-1)
    assert (equal.sum(1) == 1).all() and (equal.sum(0) <= 1).all()
    assert torch.equal(book.cluster_size[0] < 1, torch.arange(16).lt(dead) & ~changed)


def test_a_loaded_codebook_knows_on_the_host_that_it_has_started():
    quantizer, other = (Quantizer(6, 16, init="kmeans").train() for _ in range(2))
    quantizer(torch.randn(4, 6, 8, 8))
    other.load_state_dict(quantizer.state_dict())
    begun = other._codebook.embed.clone()
    other.start(torch.randn(4, 6, 8, 8), batches=1)
    assert other._codebook.started and torch.equal(other._codebook.embed, begun)
    other.load_state_dict(Quantizer(6, 16, init="kmeans").state_dict())
    assert not other._codebook.started
    with torch.device("meta"):
        Quantizer(6, 16).load_state_dict(quantizer.state_dict(), assign=True)


def test_codes_are_counted_as_bincount_counts_them():
    indices = torch.randint(9, (3, 8, 8))
    assert torch.equal(code_counts(indices, 12), torch.bincount(indices.flatten(), minlength=12).float())


def test_the_library_s_versions_are_those_whose_inside_is_known():
    """The codebook extends a class of its inside, which 1.28 did not have so and a later version may change."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    (bounds,) = (need for need in map(Requirement, project["dependencies"]) if need.name == "vector-quantize-pytorch")
    assert bounds.specifier.contains(version("vector-quantize-pytorch"))
    assert not any(bounds.specifier.contains(other) for other in ("1.27.0", "1.28.2", "1.33.0"))
