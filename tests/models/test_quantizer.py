import pytest
import torch
from vector_quantize_pytorch import VectorQuantize

from models.quantizer import Quantizer
from models.vqvae import perplexity

OPTIONS = {"decay": 0.9, "rotation_trick": False}


def pair(codes=64, dim=6, **options):
    """Ours and the library's with the same codebook."""
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
