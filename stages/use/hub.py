"""Networks in the hub's conventions: `Exported.from_pretrained(folder)` and `save_pretrained(folder)`.

Needs huggingface_hub, of the extra `export`; the networks themselves know nothing of it.
"""

from collections.abc import Callable, Mapping
from typing import Any

from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from data.sizes import SIZE
from models.evaluator import Evaluator
from stages.ddpm import build_ddpm
from stages.engine.schema import Ddpm, Gan, Ldm, Section, Vae
from stages.engine.schema import Evaluator as EvaluatorSection
from stages.gan import build_generator
from stages.ldm import build_unet
from stages.vae import build_vae

LIBRARY = "iclevr-latent-diffusion"
TAGS = ["latent-diffusion", "i-clevr"]
FACTS = ("inputs", "classes", "most", "latent_channels")  # what an export says of a network besides its settings

# stage -> its section, and how its network is made from settings, facts and the pictures' size
NETWORKS: dict[str, tuple[type[Section], Callable[[Any, dict, int], nn.Module]]] = {
    "evaluator": (EvaluatorSection, lambda settings, facts, size: Evaluator(facts["classes"])),
    "vae": (Vae, lambda settings, facts, size: build_vae(settings)),
    "ldm": (Ldm, lambda settings, facts, size: build_unet(settings, facts["inputs"], facts["classes"], facts["most"])),
    "gan": (
        Gan,
        lambda settings, facts, size: build_generator(settings, facts["classes"], facts["latent_channels"], size),
    ),
    "ddpm": (Ddpm, lambda settings, facts, size: build_ddpm(settings, facts["classes"], facts.get("most", 0), size)),
}
NETWORKS["onestep"] = NETWORKS["ldm"]  # it has its teacher's network


class Exported(nn.Module, PyTorchModelHubMixin, library_name=LIBRARY, tags=[*TAGS]):
    """A trained network, `network`, and what builds it. Calls go to the network.

    `stage`: one of NETWORKS; `settings`: the section that builds it, as it was trained; `facts`: those of FACTS
    that it has; `size`: the pictures' pixels a side; `objects`: the vocabulary, in the order of the indices.
    Its file of weights has the network's own names. RuntimeError refuses the weights of another network.
    """

    def __init__(self, stage: str, settings: dict, facts: dict, size: int, objects: list[str]):
        super().__init__()
        section, build = NETWORKS[stage]
        self.objects, self.size = objects, size
        self.network = build(section.model_validate(settings, strict=False), facts, size)

    def forward(self, *inputs: object, **options: object) -> Any:
        return self.network(*inputs, **options)

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        return self.network.state_dict(*arguments, **options)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        return self.network.load_state_dict(state_dict, strict=True, assign=assign)  # the mixin's default is not strict


def of_trained(stage: str, network: nn.Module, about: dict, objects: list[str]) -> Exported:
    """Returns a copy, on the CPU and frozen, of a trained network that its export's `about` describes."""
    section, _ = NETWORKS[stage]
    built = about.get("teacher", about)  # a one-step generator is built as its teacher is
    settings = section.model_validate(built.get("config", {}), strict=False).model_dump(mode="json")
    facts = {name: built[name] for name in FACTS if name in built}
    exported = Exported(stage=stage, settings=settings, facts=facts, size=about.get("size", SIZE), objects=objects)
    exported.load_state_dict(network.state_dict())
    return exported.eval().requires_grad_(False)
