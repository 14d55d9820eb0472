"""`make ldm`, stage 2: a cross-attention UNet on the autoencoder's latents, with a DDIM sampler."""

from collections.abc import Callable

import torch
from torch import Tensor

from data.images import to_unit
from models.diffusion import Diffusion
from models.evaluator import accuracy
from models.samplers import ddim, guided
from models.unet import UNet
from models.vqvae import VQVAE
from stages.engine.checkpoint import load_export
from stages.engine.command import Context, add_fresh, command
from stages.engine.dataset import Dataset, load_dataset
from stages.engine.draws import Draws, sample_generator
from stages.engine.ema import Ema
from stages.engine.errors import UserError
from stages.engine.optim import Optimizer
from stages.engine.pictures import grid
from stages.engine.run import Run
from stages.engine.schema import Eval, Ldm
from stages.evaluator import load_evaluator, scores
from stages.vae import load_vae, load_vae_of


@torch.no_grad()
def encode_set(vae: VQVAE, images: Tensor, context: Context) -> Tensor:
    """The whole set (n, 3, 64, 64) uint8 -> normalised latents (n, c, 8, 8) float32 on the device."""
    rows = []
    for part in images.split(256):
        with context.autocast():
            rows.append(vae.encode(to_unit(part).to(memory_format=torch.channels_last)))
    return torch.cat(rows)


def build_unet(settings: Ldm, inputs: int, classes: int, most: int) -> UNet:
    """The network of an `ldm` section, for latents of `inputs` channels and at most `most` labels a picture."""
    return UNet(inputs, classes, most, **settings.network.model_dump())


class LatentSampler:
    """Labels and a key for each sample -> pictures. A sample depends on its key, not on its batch.

    Batches are padded to one size: the same arithmetic whatever else is asked for.
    """

    def __init__(self, context: Context, unet: UNet, vae: VQVAE, settings: Ldm):
        self.context, self.unet, self.vae = context, unet, vae
        self.diffusion = Diffusion.create(settings.schedule, settings.timesteps, settings.prediction, context.device)
        self.shape = (unet.inputs, 8, 8)

    def _denoiser(self, labels: Tensor, how: Eval):
        """Conditional, unconditional and doubled predictions of one batch's labels, guided as `how` says."""

        def predict(x: Tensor, t: Tensor, keep: list[bool]) -> Tensor:
            keep_rows = torch.tensor(keep, device=x.device).repeat_interleave(len(labels))
            copies = len(keep)
            x, t, y = x.repeat(copies, 1, 1, 1), t.repeat(copies), labels.repeat(copies, 1)
            with self.context.autocast():
                return self.unet(x.contiguous(memory_format=torch.channels_last), t, y, keep_rows)

        return guided(
            lambda x, t: predict(x, t, [True]),
            lambda x, t: predict(x, t, [False]),
            lambda x, t: predict(x, t, [True, False]),
            how.guidance,
            len(self.diffusion),
            how.interval,
        )

    @torch.no_grad()
    def sample(
        self, labels: Tensor, keys: list[tuple], how: Eval, watch: Callable[[int, Tensor, Tensor], None] | None = None
    ) -> Tensor:
        """(n, classes) labels, n keys -> (n, 3, 64, 64) in [-1, 1].

        `watch` is given each step's t and the pictures of x and of the predicted x_0.
        """
        if how.steps > len(self.diffusion):
            raise UserError(f"eval.steps ({how.steps}) must not exceed ldm.timesteps ({len(self.diffusion)})")
        self.unet.labels.most = max(self.unet.labels.most, int(labels.sum(1).max()))
        pictures = []
        for first in range(0, len(labels), how.batch):
            part, part_keys = labels[first : first + how.batch], keys[first : first + how.batch]
            missing = how.batch - len(part)
            padded = torch.cat([part, part[:1].expand(missing, -1)]).to(self.context.device)
            generators = [sample_generator(*key) for key in part_keys]

            def draw(generators: list = generators, missing: int = missing) -> Tensor:
                rows = [torch.randn(self.shape, generator=g) for g in generators]
                return torch.stack(rows + [torch.zeros(self.shape)] * missing).to(self.context.device)

            x = draw()
            for t, following, x0 in ddim(self._denoiser(padded, how), self.diffusion, x, how.steps, how.eta, draw):
                x = following
                if watch is not None:
                    watch(t, self._decode(x)[: len(part)], self._decode(x0)[: len(part)])
            pictures.append(self._decode(x)[: len(part)])
        return torch.cat(pictures)

    def _decode(self, latents: Tensor) -> Tensor:
        with self.context.autocast():
            return self.vae.decode(latents.contiguous(memory_format=torch.channels_last)).clamp(-1, 1)


def load_sampler(context: Context) -> tuple[LatentSampler, dict]:
    """The experiment's LDM as a sampler, and what its export says. Refuses an autoencoder it was not trained on."""
    tensors, about = load_export(context.export("ldm"), "run `make ldm`")
    vae = load_vae_of(context, "ldm", about)
    settings = Ldm.model_validate(about["config"], strict=False)
    unet = build_unet(settings, about["inputs"], about["classes"], about["most"])
    unet.load_state_dict(tensors)
    unet.eval().requires_grad_(False).to(context.device, memory_format=torch.channels_last)
    return LatentSampler(context, unet, vae, settings), about


class LdmTask:
    """Weighted squared error on the noise or velocity of noised latents; labels dropped for guidance."""

    def __init__(self, context: Context, dataset: Dataset, vae: VQVAE):
        self.context, self.dataset, self.settings, self.vae = context, dataset, context.config.ldm, vae
        s = self.settings
        self.latents = encode_set(vae, dataset.images, context)
        self.facts = {
            "inputs": self.latents.shape[1],
            "classes": len(dataset.vocabulary),
            "most": int(dataset.labels.sum(1).max()),
            "objects": dataset.vocabulary.names,
        }
        torch.manual_seed(context.config.seed)
        network = build_unet(s, *(self.facts[key] for key in ("inputs", "classes", "most")))
        self.network = network.to(context.device, memory_format=torch.channels_last)
        self.ema = Ema(network, s.ema)
        self.optimizers = [Optimizer(network, s)]
        self.parts = {"network": network, "ema": self.ema.average, "optimizer": self.optimizers[0]}
        self.diffusion = Diffusion.create(s.schedule, s.timesteps, s.prediction, context.device)
        self.evaluator, _ = load_evaluator(context, len(dataset.vocabulary))

    def step(self, step: int, draws: Draws) -> dict[str, Tensor]:
        s, index = self.settings, draws.indices(len(self.latents))
        x0, labels = self.latents[index], self.dataset.labels[index]
        t, noise = draws.integers(s.timesteps), draws.normal(*x0.shape[1:])
        keep = draws.uniform() >= s.label_dropout
        xt = self.diffusion.noised(x0, noise, t).contiguous(memory_format=torch.channels_last)
        self.network.train()
        with self.context.autocast():
            prediction = self.network(xt, t, labels, keep)
        errors = (prediction - self.diffusion.target(x0, noise, t)).square().mean(dim=(1, 2, 3))
        loss = (self.diffusion.loss_weight(t, s.min_snr) * errors).mean()
        norm = self.optimizers[0].update(loss, step)
        self.ema.update(step)
        return {"loss": loss, "gradient_norm": norm, **self._by_quartile(errors.detach(), t)}

    def _by_quartile(self, errors: Tensor, t: Tensor) -> dict[str, Tensor]:
        """Mean unweighted error of each quarter of the timesteps: where in the denoising it is learned."""
        quarter = t * 4 // self.settings.timesteps
        found = [(quarter == q) for q in range(4)]
        return {f"error_q{q + 1}": (errors * m).sum() / m.sum().clamp(min=1) for q, m in enumerate(found)}

    def preview(self, step: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Accuracy on both test sets with one seed that the evaluation does not use: a curve, not a result."""
        sampler = LatentSampler(self.context, self.ema.average, self.vae, self.settings)
        how = self.context.config.eval.model_copy(update={"steps": min(20, self.context.config.eval.steps)})
        metrics, pictures = {}, {}
        for name, labels in self.dataset.test_sets.items():
            images = sampler.sample(labels, [("preview", name, i) for i in range(len(labels))], how)
            metrics[f"accuracy_{name}"] = accuracy(scores(self.evaluator, images, self.context).cpu(), labels)
            pictures[name] = grid(images)
        return metrics, pictures

    def export(self) -> tuple[dict[str, Tensor], dict]:
        return self.ema.average.state_dict(), self.facts


def main(context: Context) -> None:
    dataset = load_dataset(context.config, context.device)
    vae, about = load_vae(context)
    run = Run(context, "ldm", {"data": dataset.sha256, "vae": about["sha256"]})
    if not run.finished():
        run.train(LdmTask(context, dataset, vae))


if __name__ == "__main__":
    command("Stage 2: trains the latent diffusion model on the autoencoder's latents.", main, add_fresh)
