"""Fills the folder of `make export`: one folder a network, a page about all of them, and a script that draws."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from huggingface_hub import ModelCard, ModelCardData
from torch import nn

from data.sizes import SIZE
from models.choices import WORDS
from models.layouts import LayoutPrior
from stages.engine.command import Context
from stages.engine.errors import UserError
from stages.engine.files import read_json
from stages.engine.log import say
from stages.use import graphs, hub
from stages.use.find import FIGURES
from stages.use.graphs import Graph

HERE = Path(__file__).parent
SCRIPT = HERE / "draw_onnx.py"
CHECKED = ((1, 1), (3, 5))  # rows and slots with which each graph is compared with torch
OURS = "The scenes are the project's own drawings; code and weights have the MIT licence."
THEIRS = "The code has the MIT licence; for the weights the terms of the pictures count, which this card does not know."


@dataclass
class Folder:
    """Collects what is written. `path`: the folder; `experiment`: its name; `objects`: the vocabulary."""

    path: Path
    context: Context
    objects: list[str]
    graphs: dict[str, dict] = field(default_factory=dict)

    def add(
        self,
        stage: str,
        network: nn.Module,
        about: dict,
        graphs_of: Callable[[Any], dict[str, Graph]],
        layouts: LayoutPrior | None = None,
        texts: dict[str, tuple[str, str]] | None = None,
    ) -> Any:
        """Writes a network's folder: weights, what builds it, layouts, the ONNX `graphs_of(network)`, and its card.

        `texts`: further files, {name: (what it is, content)}. Returns the copy of the network that was written.
        Raises UserError if a graph does not give what torch gives.
        """
        folder, exported = self.path / stage, hub.of_trained(stage, network, about, self.objects)
        files = {"model.safetensors": "weights, float32", "config.json": "what builds the network"}
        folder.mkdir()
        if layouts is not None:
            arrays: dict[str, Any] = {str(n): places.numpy() for n, places in layouts.layouts.items()}
            np.savez(folder / "layouts.npz", **arrays)
            files["layouts.npz"] = "places of objects in training pictures, by their number"
        for name, (words, content) in (texts or {}).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(content, encoding="utf-8")
            files[name] = words
        for name, graph in graphs_of(exported.network).items():
            self._write(f"{stage}/{name}", graph)
            files[name] = f"ONNX graph, opset {graphs.OPSET}: {graph.words}"
        self._card(stage, about, files).save(folder / "README.md")  # the mixin keeps a card that is there
        exported.save_pretrained(folder)
        shutil.copymode(folder / "config.json", folder / "model.safetensors")  # which only its owner could read
        return exported.network

    def _write(self, name: str, graph: Graph) -> None:
        graphs.write_graph(graph, self.path / name)
        worst = max(graphs.difference(graph, self.path / name, rows, slots) for rows, slots in CHECKED)
        if not worst <= graphs.TOLERANCE:
            raise UserError(
                f"{name}: onnxruntime differs from torch by {worst:.1e}, more than {graphs.TOLERANCE:g}; install the "
                f"versions in requirements-export.lock"
            )
        say(f"{name}: differs from torch by at most {worst:.1e}")
        self.graphs[name] = {"inputs": graph.shapes(), "output": graph.output, "difference": worst}

    def _card(self, stage: str, about: dict, files: dict[str, str]) -> ModelCard:
        ours = self.context.config.data.folder is None
        data = ModelCardData(library_name=hub.LIBRARY, tags=[*hub.TAGS, stage], license="mit" if ours else "other")
        figures, measured = self._figures(stage, about)
        return ModelCard.from_template(
            data,
            template_str=(HERE / "network_card.md.jinja").read_text(encoding="utf-8"),
            title=f"{WORDS[stage].title}, {self.context.config.name}",
            words=WORDS[stage].what,
            stage=stage,
            experiment=self.context.config.name,
            files=files,
            facts=_facts(about),
            figures=figures,
            measured=measured,
            objects=self.objects,
            size=about.get("size", SIZE),
            licence=OURS if ours else THEIRS,
        )

    def _figures(self, stage: str, about: dict) -> tuple[dict[str, str], str]:
        """Returns the accuracies of `make eval` by set, and words on what they are, if it measured this very export.

        It may have been run in this experiment or in the one that the model is taken from. A release has those of the
        weights that it was rounded from in a file of its own.
        """
        for experiment in dict.fromkeys((self.context.config.name, self.context.experiment_of(stage))):
            try:
                found = _measured(Path(self.context.config.root) / experiment, stage, about["sha256"])
            except (AttributeError, ValueError, KeyError, TypeError):  # by another version
                continue
            if found[0]:
                return found
        return {}, ""

    def finish(self, models: dict[str, dict]) -> None:
        """Writes the files about the whole folder: config.json, which draw.py reads, the script and the page."""
        config = {
            "experiment": self.context.config.name,
            "opset": graphs.OPSET,
            "objects": self.objects,
            "models": models,
        }
        (self.path / "config.json").write_text(json.dumps(config, allow_nan=False), encoding="utf-8")
        shutil.copyfile(SCRIPT, self.path / "draw.py")
        environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
        page = environment.from_string((HERE / "index.md.jinja").read_text(encoding="utf-8")).render(
            experiment=self.context.config.name,
            graphs=self.graphs,
            opset=graphs.OPSET,
            draws=bool(models),
            example=", ".join(self.objects[:2]),
        )
        (self.path / "README.md").write_text(page + "\n", encoding="utf-8")


def _measured(folder: Path, stage: str, sha256: str) -> tuple[dict[str, str], str]:
    """Returns what an experiment's report says of an export, as `Folder._figures` does. Raises for a strange report."""
    report = read_json(folder / "eval" / "report.json")
    released = read_json(folder / FIGURES).get(stage, {})
    if report.get("provenance", {}).get("parents", {}).get(stage) == sha256:
        sets, seeds, when = report["results"][stage], len(report["provenance"]["seeds"]), ""
    elif released.get("export") == sha256:
        sets, seeds = released["sets"], released["seeds"]
        when = "" if released["measured"] == sha256 else ", before rounding to 16 bits"
    else:
        return {}, ""
    measured = {name: value for name, value in sets.items() if "std" in value}
    shown = {name: f"{of['accuracy']:.3f} ± {of['std']:.3f}" for name, of in measured.items()}
    return shown, f"over {seeds} sampling seeds, by `make eval`{when}"


def _facts(about: dict) -> dict[str, object]:
    """Returns a card's facts about a training, as far as the export has them."""
    versions, parents = about.get("versions", {}), about.get("parents", {})
    hashes = {name: value[:12] for name, value in parents.items() if isinstance(value, str) and len(value) == 64}
    found = {
        "steps": about.get("steps"),
        "seconds": round(about["seconds"]) if "seconds" in about else None,
        "device": about.get("device"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "accuracy on held-out pictures": f"{about['real_accuracy']:.3f}" if "real_accuracy" in about else None,
        "made from (sha256)": ", ".join(f"{name} {sha}" for name, sha in hashes.items()),
        "made with": ", ".join(f"{name}={value}" for name, value in parents.items() if name not in hashes),
        "export (sha256)": about["sha256"],
    }
    return {name: value for name, value in found.items() if value not in (None, "")}
