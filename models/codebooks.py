"""The quantisers of latents that have codebooks: one, or residual ones. Their interface is models/quantizer.py's.

The codebook is `vector_quantize_pytorch`'s with its arithmetic done by index. The library builds a (tokens, codes)
one-hot matrix and multiplies with it, forward and in the moving averages. Here a lookup and index_add give the same
sums (a test compares them), in a small part of the time at 8192 codes. The library also asks the device in each step
whether the codes have started and which are dead; here nothing waits for it.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn
from vector_quantize_pytorch import ResidualVQ, VectorQuantize
from vector_quantize_pytorch.vector_quantize_pytorch import Codebook, ema_inplace

from models.vqvae import code_counts

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def without_autocast(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorates a function to run without autocast. It keeps the function's type, which torch's decorators lose."""
    decorated: Callable[Arguments, Result] = torch.autocast("cuda", enabled=False)(
        torch.autocast("cpu", enabled=False)(function)
    )
    return decorated


def nearest_codes(codes: Tensor, vectors: Tensor) -> Tensor:
    """Returns the index of each vector's nearest code: codes (k, d), vectors (n, d) -> (n,) int64."""
    # |x - e|^2 = |x|^2 - 2 x.e + |e|^2, and |x|^2 is the same for every code
    return torch.addmm(codes.square().sum(1)[None], vectors, codes.t(), beta=1, alpha=-2).argmin(dim=1)


class IndexedCodebook(Codebook):
    """The library's Euclidean codebook, one head, without its one-hot matrices.

    With several processes (`use_ddp`) it does what one process with the whole batch would: the sums are added up,
    and the first process makes the random draws, of the start and of replacements for dead codes, from the vectors
    of all processes. `started` says on the host what the library's `initted` says on the device.
    """

    def __init__(self, dim: int, codes: int, kmeans_init: bool = False, **options: object):
        super().__init__(dim, codes, kmeans_init=kmeans_init, **options)
        self.started = not kmeans_init

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
        super()._load_from_state_dict(state, prefix, *rest)
        if (initted := state.get(f"{prefix}initted")) is not None:
            self.started = bool(initted)

    def init_embed_(self, data: Tensor, mask: None = None) -> None:
        """Starts the codes from the first batch in training, by k-means as in the library.

        Unlike the library's, an untrained codebook does not change in eval mode.
        """
        if self.training and not self.started:
            self._decided_by_the_first(super().init_embed_, self._everyones(data))
            self.started = True

    def expire_codes_(self, batch_samples: Tensor, seq_mask: None = None) -> None:
        """Replaces dead codes by vectors of the batch, each by a different one."""
        if not self.has_dead_code_replacement:
            return
        # on a CPU the answer is there and spares the draws; on a GPU the host would wait for it
        if self.cluster_size.device.type == "cpu" and not self._dead().any():
            return
        self._decided_by_the_first(self._replace_dead, self._everyones(batch_samples))

    def _dead(self) -> Tensor:
        """Returns which codes are dead, (codes,) bool."""
        return self.cluster_size[0] < self.threshold_ema_dead_code

    def _replace_dead(self, vectors: Tensor) -> None:
        """Replaces dead codes, however many, by vectors of (1, n, d), with tensors of fixed size.

        The draws are the library's: of a permutation of the vectors the first dead code takes the first, and so on. If
        more codes are dead than there are vectors, as many of them are replaced, at random; the others remain dead.
        """
        dead, count, size = self._dead(), vectors.shape[1], self.reset_cluster_size
        order = torch.randperm(count, device=vectors.device)
        if count < self.codebook_size:
            shuffled = torch.randperm(self.codebook_size, device=vectors.device)
            dead = dead & (dead[shuffled].cumsum(0) <= count)[shuffled.argsort()]
        taken = vectors[:, order[(dead.cumsum(0) - 1).clamp(min=0)]]  # (1, codes, d)
        self.embed.copy_(torch.where(dead[:, None], taken, self.embed))
        self.embed_avg.copy_(torch.where(dead[:, None], taken * size, self.embed_avg))
        self.cluster_size.masked_fill_(dead, size)

    def _everyones(self, vectors: Tensor) -> Tensor:
        """Gathers (1, n, d) of every process, in order: (1, processes x n, d)."""
        if not self.use_ddp:
            return vectors
        parts = [torch.empty_like(vectors) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, vectors.contiguous())
        return torch.cat(parts, dim=1)

    def _decided_by_the_first(self, update: Callable[[Tensor], None], vectors: Tensor) -> None:
        """Calls update(vectors) in the first process; the others copy the result."""
        if not self.use_ddp or dist.get_rank() == 0:
            update(vectors)
        if self.use_ddp:
            self.initted.fill_(True)
            for buffer in (self.embed, self.embed_avg, self.cluster_size):
                dist.broadcast(buffer, src=0)

    def start_from(self, vectors: Tensor, batches: float) -> None:
        """Starts by k-means over vectors (1, n, d), equal in all processes, with the counts and sums of one batch."""
        self._decided_by_the_first(super().init_embed_, vectors)
        self.started = True
        self.cluster_size.div_(batches)
        self.embed_avg.div_(batches)

    @without_autocast
    def forward(
        self, x: Tensor, freeze_codebook: bool = False, update_usage: bool = True, **unused: object
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Maps x (b, n, d) to the nearest codes (b, n, d), their indices (b, n) int64, and no distances."""
        flat = rearrange(x.float(), "b n d -> 1 (b n) d")
        self.init_embed_(flat)
        codes = self.embed[0].detach()
        indices = nearest_codes(codes, flat[0])
        nearest = codes[indices].view_as(x)  # before the update, which works in place
        if self.training and update_usage and not freeze_codebook:
            self._update(flat.detach(), indices)
        return nearest, indices.view(x.shape[:-1]), codes.new_zeros(1)

    def _update(self, flat: Tensor, indices: Tensor) -> None:
        counts = code_counts(indices, self.codebook_size)[None]
        sums = torch.zeros_like(self.embed_avg).index_add_(1, indices, flat)
        self.all_reduce_fn(counts)
        self.all_reduce_fn(sums)
        ema_inplace(self.cluster_size, counts, self.decay)
        ema_inplace(self.embed_avg, sums, self.decay)
        self.update_ema()
        self.expire_codes_(flat)


class Quantizer(VectorQuantize):
    """One codebook: (b, d, h, w) -> quantised (b, d, h, w), indices (b, h, w), weighted commitment loss."""

    _codebook: IndexedCodebook

    def __init__(
        self,
        dim: int,
        codes: int,
        decay: float = 0.99,
        commitment: float = 0.25,
        dead_below: float = 1.0,
        rotation_trick: bool = False,
        init: str = "kmeans",
    ):
        options: dict[str, Any] = {
            "decay": decay,
            "threshold_ema_dead_code": dead_below,
            "kmeans_init": init == "kmeans",
            "sync_kmeans": False,
        }
        super().__init__(
            dim=dim,
            codebook_size=codes,
            commitment_weight=commitment,
            rotation_trick=rotation_trick,
            accept_image_fmap=True,
            **options,
        )
        self._codebook = IndexedCodebook(dim, codes, use_ddp=self._codebook.use_ddp, **options)

    @without_autocast
    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(b, d, h, w) -> quantised (b, d, h, w), indices (b, h, w), weighted commitment loss.

        In float32: under autocast the library's rotation trick would give the decoder values that are not codes.
        """
        quantised, indices, loss = super().forward(latents.float())
        return quantised, indices, loss

    @torch.no_grad()
    def start(self, latents: Tensor, batches: float) -> None:
        """Starts the codes by k-means over latents (b, d, h, w) of `batches` batches: rare vectors need many.

        Several processes give the same latents. The moving counts and sums start as those of one batch. Only the
        first call has an effect, and none if the codes started at random: a started codebook learns by its moving
        averages.
        """
        book = self._codebook
        if not book.started:
            book.start_from(rearrange(latents.float(), "b d h w -> 1 (b h w) d"), batches)

    def bounded(self, latents: Tensor) -> Tensor:
        """Returns the latents unchanged: codes may be anywhere."""
        return latents

    def lookup(self, indices: Tensor) -> Tensor:
        """Returns the codes (b, d, h, w) of indices (b, h, w)."""
        return rearrange(self._codebook.embed[0][indices], "b h w d -> b d h w")

    @without_autocast
    def nearest(self, latents: Tensor) -> Tensor:
        """Returns indices (b, h, w) of the codes nearest to (b, d, h, w), in float32; nothing is learned."""
        found = nearest_codes(self._codebook.embed[0], rearrange(latents.float(), "b d h w -> (b h w) d"))
        return rearrange(found, "(b h w) -> b h w", h=latents.shape[2], w=latents.shape[3])


class Residual(nn.Module):
    """`vector_quantize_pytorch`'s residual codebooks (arXiv 2107.03312): each codes the error of those before it.

    A cell's codes, one per codebook, are the digits of its index, the first codebook's the last.
    """

    def __init__(self, dim: int, codes: int, quantizers: int, decay: float, commitment: float, dead_below: float):
        super().__init__()
        self.codes, self.quantizers = codes, quantizers
        self.codebook_size = codes**quantizers
        options: dict[str, Any] = {
            "decay": decay,
            "threshold_ema_dead_code": dead_below,
            "kmeans_init": True,
            "sync_kmeans": False,
        }
        self.book = ResidualVQ(
            dim=dim,
            codebook_size=codes,
            num_quantizers=quantizers,
            commitment_weight=commitment,
            rotation_trick=False,  # the library's default rotates the gradient
            **options,
        )
        for layer in self.book.layers:  # several processes act as one, and a codebook stays the same in eval mode
            layer._codebook = IndexedCodebook(dim, codes, use_ddp=layer._codebook.use_ddp, **options)

    @without_autocast
    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(b, d, h, w) -> quantised (b, d, h, w), indices (b, h, w), weighted commitment loss."""
        latents = latents.float()
        quantised, digits, losses = self.book(rearrange(latents, "b d h w -> b (h w) d"))
        size = {"h": latents.shape[2], "w": latents.shape[3]}
        indices = rearrange((digits * self._places(digits.device)).sum(-1), "b (h w) -> b h w", **size)
        quantised = rearrange(quantised, "b (h w) d -> b d h w", **size)
        # straight through once: the library's sum has the gradient of each codebook
        return latents + (quantised - latents).detach(), indices, losses.sum()

    def _places(self, device: torch.device) -> Tensor:
        return self.codes ** torch.arange(self.quantizers, device=device)

    def bounded(self, latents: Tensor) -> Tensor:
        """Returns the latents unchanged: codes may be anywhere."""
        return latents

    @torch.no_grad()
    @without_autocast
    def nearest(self, latents: Tensor) -> Tensor:
        """Returns indices (b, h, w) of (b, d, h, w), in float32; nothing is learned, even before training."""
        left = rearrange(latents.float(), "b d h w -> (b h w) d")
        indices = torch.zeros_like(left[:, 0], dtype=torch.int64)  # not of len(left), which a traced graph would fix
        for codes, place in zip(self.book.codebooks, self._places(latents.device), strict=True):
            found = nearest_codes(codes, left)
            left, indices = left - codes[found], indices + found * place
        return rearrange(indices, "(b h w) -> b h w", h=latents.shape[2], w=latents.shape[3])

    def lookup(self, indices: Tensor) -> Tensor:
        """Returns the sums of the codes (b, d, h, w) of indices (b, h, w)."""
        digits = indices[..., None] // self._places(indices.device) % self.codes
        # the library's get_output_from_indices would fix the batch of a traced graph
        found = [codes[each] for codes, each in zip(self.book.codebooks, digits.unbind(-1), strict=True)]
        return rearrange(torch.stack(found).sum(0), "b h w d -> b d h w")
