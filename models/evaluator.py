"""The lab's evaluator, a ResNet-18 with 24 sigmoid outputs, and the top-k accuracy of its scores."""

import torch
from einops import rearrange
from torch import Tensor, nn

STRIDE = 8  # pixels a side of what a feature of `Evaluator.middle` sees the centre of


class Evaluator(nn.Module):
    """torchvision's ResNet-18 with `fc = Linear(512, classes), Sigmoid`: the module tree of the lab's checkpoint."""

    def __init__(self, classes: int = 24):
        super().__init__()
        from torchvision.models import resnet18  # takes four seconds to import: only where one is built

        self.resnet18 = resnet18(weights=None)
        self.resnet18.fc = nn.Sequential(nn.Linear(512, classes), nn.Sigmoid())

    def logits(self, images: Tensor) -> Tensor:
        """Returns the scores before the sigmoid: (b, 3, s, s) in [-1, 1] -> (b, classes)."""
        return self.from_middle(self.middle(images))

    def middle(self, images: Tensor) -> Tensor:
        """Returns the features of the second stage: (b, 3, s, s) in [-1, 1] -> (b, 128, s/8, s/8)."""
        net = self.resnet18
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        return net.layer2(net.layer1(x))

    def from_middle(self, x: Tensor) -> Tensor:
        """Returns the scores before the sigmoid, from the features of `middle`: (b, 128, s/8, s/8) -> (b, classes)."""
        return self.resnet18.fc[0](self._pooled(x))

    def features(self, images: Tensor) -> Tensor:
        """Returns pooled features: (b, 3, s, s) in [-1, 1] -> (b, 512)."""
        return self._pooled(self.middle(images))

    def _pooled(self, x: Tensor) -> Tensor:
        net = self.resnet18
        return rearrange(net.avgpool(net.layer4(net.layer3(x))), "b c 1 1 -> b c")

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, s, s) in [-1, 1] -> (b, classes) in [0, 1]."""
        return self.logits(images).sigmoid()


def found_labels(scores: Tensor, labels: Tensor) -> Tensor:
    """Marks each row's labels that are among its k highest scores: (b, classes) bool.

    scores: (b, classes); labels: (b, classes) multi-hot, k = labels.sum(1), which may differ between rows.
    """
    order = scores.argsort(dim=1, descending=True)
    counts = labels.sum(dim=1, keepdim=True)
    within = torch.arange(labels.shape[1], device=labels.device) < counts
    best = torch.zeros_like(labels, dtype=torch.bool).scatter(1, order, within)
    return best & labels.bool()


def top_k_hits(scores: Tensor, labels: Tensor) -> Tensor:
    """Counts each row's labels that `found_labels` marks: (b,) int64."""
    return found_labels(scores, labels).sum(dim=1)


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Returns accuracy by the lab's rule: hits over all pictures divided by labels over all pictures."""
    return (top_k_hits(scores, labels).sum() / labels.sum()).item()


def agreement(found: list[Tensor], labels: Tensor) -> float:
    """Returns the share of all labels on which several judges agree: all found it, or none did.

    found: what each judge's `found_labels` marks, (b, classes) each; labels: (b, classes) multi-hot.
    """
    votes = torch.stack(found).sum(dim=0)
    alike = (votes == 0) | (votes == len(found))
    return (alike[labels.bool()].sum() / labels.sum()).item()
