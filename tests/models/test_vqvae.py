import pytest
import torch

from models.vqvae import VQVAE, LatentClassifier

SMALL = {"channels": (8, 8, 8), "options": {"codes": 16, "init": "uniform"}}


@pytest.mark.parametrize("stem", [1, 2])
@pytest.mark.parametrize("norm", ["group", "none"])
def test_shapes(stem, norm):
    images, codes, commitment = VQVAE(stem=stem, norm=norm, **SMALL)(torch.randn(2, 3, 64, 64))
    assert images.shape == (2, 3, 64, 64)
    assert codes.shape == (2, 8, 8)
    assert commitment.numel() == 1


def test_encode_normalises_and_decode_undoes_it():
    vae = VQVAE(**SMALL).eval()
    images = torch.randn(2, 3, 64, 64)
    expected = vae(images)[0]
    raw = vae.encoder(images)
    vae.latent_mean.copy_(raw.mean(dim=(0, 2, 3)))
    vae.latent_std.copy_(raw.std(dim=(0, 2, 3)))
    latents = vae.encode(images)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(vae.decode(latents), expected, atol=1e-4, rtol=1e-4)


def test_decode_snaps_to_codes():
    """A latent slightly off a code decodes like the code."""
    vae = VQVAE(**SMALL).eval()
    codes = vae.quantizer.lookup(torch.randint(16, (1, 8, 8)))
    torch.testing.assert_close(vae.decode(codes), vae.decode(codes + 1e-4))


def test_a_gradient_passes_the_decoders_quantiser_as_identity():
    """The latents' gradient is the decoder's at the codes, times the deviation that undoes the normalisation."""
    torch.manual_seed(0)
    vae = VQVAE(**SMALL).eval().requires_grad_(False)
    vae.latent_mean.copy_(torch.randn(6))
    vae.latent_std.copy_(torch.rand(6) + 0.5)
    latents, weights = torch.randn(2, 6, 8, 8, requires_grad=True), torch.randn(2, 3, 64, 64)
    images = vae.decode(latents)
    (gradient,) = torch.autograd.grad((images * weights).sum(), latents)
    std, mean = (v[:, None, None] for v in (vae.latent_std, vae.latent_mean))
    raw = (latents * std + mean).detach()
    codes = vae.quantizer.lookup(vae.quantizer.nearest(raw)).requires_grad_()
    assert (codes - raw).abs().mean() > 0.1  # far from the latents: it matters where the gradient is taken
    (expected,) = torch.autograd.grad((vae.decoder(codes) * weights).sum(), codes)
    torch.testing.assert_close(gradient, expected * std, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(images, vae.decode(latents.detach()), atol=1e-5, rtol=1e-5)


def test_gradient_reaches_the_encoder():
    vae = VQVAE(**SMALL)
    vae(torch.randn(2, 3, 64, 64))[0].square().mean().backward()
    assert vae.encoder.body[0].weight.grad.abs().sum() > 0


def test_without_quantisation_the_codebook_does_not_change():
    vae = VQVAE(**SMALL).train()
    before = vae.quantizer._codebook.embed.clone()
    images, _, commitment = vae(torch.randn(2, 3, 64, 64), quantize=False)
    assert images.shape == (2, 3, 64, 64)
    assert commitment == 0
    assert torch.equal(vae.quantizer._codebook.embed, before)


def test_the_latent_classifier_finds_an_object_anywhere_and_only_it():
    torch.manual_seed(0)
    classifier = LatentClassifier(6, 4, 8)
    with torch.no_grad():
        classifier.score.weight.copy_(20 * torch.eye(4, 6))
    for row, column in ((0, 0), (7, 7), (3, 5)):
        latents = torch.zeros(1, 6, 8, 8)
        latents[0, 2, row, column] = 1.0
        logits = classifier(latents)
        assert logits.shape == (1, 4)
        assert (logits > 0).tolist() == [[False, False, True, False]]
    assert (classifier(torch.zeros(1, 6, 8, 8)) < 0).all()


def test_a_decoder_of_latents_gets_them_unchanged():
    vae = VQVAE(**SMALL, decodes="latents").eval()
    latents = torch.randn(2, 6, 8, 8)
    torch.testing.assert_close(vae.decode(latents), vae.decoder(latents))


def test_finite_scalars_bound_the_latents_and_decode_to_levels():
    vae = VQVAE(**{**SMALL, "options": {"levels": 3}}, quantizer="fsq").eval()
    vae.encoder.body[-1].weight.data.mul_(1000)
    images = torch.randn(2, 3, 64, 64)
    latents = vae.latents(images)
    assert latents.abs().max() <= 1.5 and latents.abs().max() > 1.4
    quantised = latents.round().clamp(-1, 1)
    torch.testing.assert_close(vae(images)[0], vae.decoder(quantised))
    torch.testing.assert_close(vae.decode(vae.encode(images)), vae.decoder(quantised))


def test_the_label_classifier_starts_from_the_same_probability_at_any_size():
    def start(side):
        classifier = LatentClassifier(6, 4, side)
        torch.nn.init.zeros_(classifier.score.weight)
        return classifier(torch.zeros(1, 6, side, side))

    torch.testing.assert_close(start(4), start(8))
    torch.testing.assert_close(start(16), start(8))
    assert (LatentClassifier(6, 4, 8).score.bias == -6).all()
