"""LPIPS (arXiv 1801.03924) as a frozen loss."""

import warnings

import torch
from torch import Tensor, nn

BACKBONES = {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet1_1"}  # lpips' name -> torchvision's


class _InType(nn.Module):
    """A trunk that works in another type than the pictures': its maps leave as float32."""

    def __init__(self, trunk: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.trunk, self.dtype = trunk.to(dtype), dtype

    def forward(self, images: Tensor) -> list[Tensor]:
        return [features.float() for features in self.trunk(images.to(self.dtype))]


class Perceptual(nn.Module):
    """`lpips.LPIPS` with a given trunk, which is not downloaded, always frozen and in eval mode.

    `trunk`: the state dict of torchvision's ImageNet network of that name. Raises KeyError or RuntimeError if
    it is another network's. None leaves the trunk random, for tests. `dtype`: of the trunk's convolutions, forward and
    backward; what is measured on its maps is float32.
    """

    def __init__(
        self, network: str = "vgg", trunk: dict[str, Tensor] | None = None, dtype: torch.dtype = torch.float32
    ):
        super().__init__()
        import lpips  # imports scipy and torchvision: only where it is used

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips calls torchvision in a deprecated way
            self.lpips = lpips.LPIPS(net=network, pnet_rand=True, verbose=False)
        if trunk is not None:
            # lpips names layer i of `features` sliceN.i
            own = self.lpips.net.state_dict()
            self.lpips.net.load_state_dict({key: trunk["features." + key.split(".", 1)[1]] for key in own})
        if dtype != torch.float32:
            self.lpips.net = _InType(self.lpips.net, dtype)
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> "Perceptual":
        """Stays in eval mode: lpips' heads have dropout."""
        return self

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Returns the mean distance of two batches (b, 3, h, w) in [-1, 1]. Call it outside autocast."""
        return self.lpips(images, others).mean()


def trunk_url(network: str) -> str:
    """Returns the URL of torchvision's ImageNet weights of a backbone."""
    import torchvision.models as zoo

    return zoo.get_model_weights(BACKBONES[network]).IMAGENET1K_V1.url


def load_trunk(content: object) -> dict[str, Tensor]:
    """Checks that a loaded file is a torchvision state dict with `features.*`. Raises ValueError."""
    if not isinstance(content, dict) or not any(str(k).startswith("features.") for k in content):
        raise ValueError("no `features.*` tensors: not a torchvision classification network")
    return {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
