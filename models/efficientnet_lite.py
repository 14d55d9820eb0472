"""EfficientNet-Lite0, a network for photographs that no generator and no judge here learns from.

The lite variant (github.com/tensorflow/tpu, efficientnet/lite) of arXiv 1905.11946 has no squeeze-and-excitation and
ReLU6 for every activation. Names of weights are those of the published PyTorch weights.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 224  # pixels a side that it was trained with
# of each group of blocks: how many, kernel, stride of the first, expansion, channels in, channels out
GROUPS = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
FEATURES = 1280
EPSILON = 1e-3  # of its batch norms


class _SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's "same": where the padding is odd, right and bottom get more."""

    def forward(self, x: Tensor) -> Tensor:
        step, window = self.stride[0], self.kernel_size[0]
        pads = []
        for side in (x.shape[-1], x.shape[-2]):
            missing = max((-(-side // step) - 1) * step + window - side, 0)
            pads += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(x, pads))


class _Block(nn.Module):
    """An inverted bottleneck: expand, filter each channel, project; with a residual where shapes allow."""

    def __init__(self, kernel: int, stride: int, expansion: int, inputs: int, outputs: int):
        super().__init__()
        width = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.expands = expansion > 1
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, width, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(width, eps=EPSILON)
        self._depthwise_conv = _SameConv2d(width, width, kernel, stride, groups=width, bias=False)
        self._bn1 = nn.BatchNorm2d(width, eps=EPSILON)
        self._project_conv = nn.Conv2d(width, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        out = F.relu6(self._bn1(self._depthwise_conv(out)))
        out = self._bn2(self._project_conv(out))
        return x + out if self.residual else out


class EfficientNetLite0(nn.Module):
    """Maps pictures to the features before the last layer; that layer's weights are kept but not used."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _SameConv2d(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=EPSILON)
        blocks: list[nn.Module] = []
        for count, kernel, stride, expansion, inputs, outputs in GROUPS:
            blocks.append(_Block(kernel, stride, expansion, inputs, outputs))
            blocks += [_Block(kernel, 1, expansion, outputs, outputs) for _ in range(count - 1)]
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = nn.Conv2d(320, FEATURES, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(FEATURES, eps=EPSILON)
        self._fc = nn.Linear(FEATURES, 1000)

    def features(self, images: Tensor) -> Tensor:
        """Returns pooled features: (b, 3, s, s) in [-1, 1] -> (b, 1280). Pictures are scaled to 224x224."""
        x = F.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        x = F.relu6(self._bn0(self._conv_stem(x)))
        x = F.relu6(self._bn1(self._conv_head(self._blocks(x))))
        return x.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, s, s) in [-1, 1] -> logits of ImageNet's classes (b, 1000)."""
        scores: Tensor = self._fc(self.features(images))
        return scores


def load_lite0(state: dict[str, Tensor]) -> EfficientNetLite0:
    """Returns the frozen network with these weights. Raises RuntimeError or ValueError if names or shapes differ."""
    with torch.device("meta"):
        network = EfficientNetLite0()
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)
