"""`make release CONFIG=...`: writes a trained experiment's weights in 16 bits, with model card and manifest, to share.

The folder has the layout of an experiment, and is loaded as one; stages/use/find.py checks its files.
"""

import json
from pathlib import Path

import torch
import yaml
from torch import Tensor

from models.layouts import PREFIX
from stages.commands import COMMANDS
from stages.engine.command import Context, run_command
from stages.engine.config import derive
from stages.engine.errors import UserError
from stages.engine.export import DTYPES, load_export, refuse_other_size, save_export, sha256_of
from stages.engine.files import made_whole, write_atomically
from stages.engine.run import SCENES, move_aside, of_same_pictures
from stages.use.card import figures_of, write_card
from stages.use.find import FIGURES, MANIFEST, STAGES, sha256_of_file

LIMIT = 40 * 2**20  # bytes of all files together: they are part of every clone
TYPES = (torch.float16, torch.bfloat16)
Exports = dict[str, tuple[dict[str, Tensor], dict]]  # tensors and description, by stage


def is_rounded(name: str, values: Tensor) -> bool:
    """Returns True for what a release holds in 16 bits: the numbers of matrices and kernels, nearly all there are.

    Vectors (norms, biases, statistics of latents), layouts and whole numbers stay as they are.
    """
    return values.is_floating_point() and values.ndim > 1 and not name.startswith(PREFIX)


def rounding_error(exports: Exports, kind: torch.dtype) -> float:
    """Returns the largest relative error of a rounded tensor, by root mean squares; infinite if a number overflows."""
    errors = [0.0]
    for tensors, _ in exports.values():
        for name, values in tensors.items():
            if is_rounded(name, values):
                error = (values.to(kind).double() - values.double()).square().mean().sqrt()
                share = (error / values.double().square().mean().sqrt().clamp(min=1e-30)).item()
                errors.append(share if share < torch.inf else torch.inf)  # also not a number
    return max(errors)


def rounded(exports: Exports, kind: torch.dtype) -> Exports:
    """Returns the exports in 16 bits. Each names its parents by the new hashes, so that the chain still fits."""
    tensors = {
        stage: {name: values.to(kind) if is_rounded(name, values) else values for name, values in of_stage.items()}
        for stage, (of_stage, _) in exports.items()
    }
    new = {about["sha256"]: sha256_of(tensors[stage]) for stage, (_, about) in exports.items()}

    def renamed(facts: dict) -> dict:
        return {key: new.get(value, value) if isinstance(value, str) else value for key, value in facts.items()}

    made: Exports = {}
    for stage, (_, about) in exports.items():
        facts = {key: value for key, value in about.items() if key != "sha256"}  # save_export writes the new one
        facts["identity"] = renamed(about["identity"])
        if "parents" in about:  # the lab's evaluator has none
            facts["parents"] = renamed(about["parents"])
        if new[about["sha256"]] != about["sha256"]:  # one of an earlier release is rounded already
            facts |= {"rounded_from": about["sha256"], "rounded_to": DTYPES[kind]}
        made[stage] = tensors[stage], facts
    return made


def read_exports(context: Context) -> Exports:
    """Loads the exports of an experiment's stages. Raises UserError for one of pictures that were not drawn here."""
    exports: Exports = {}
    for stage in STAGES:
        path = context.export(stage)
        if not path.is_file():
            continue
        exports[stage] = load_export(path, f"run {context.make(stage)}")
        refuse_other_size(path, exports[stage][1], context.config.data.size)
        about = exports[stage][1]
        if about.get("kind") == "lab" or SCENES not in about["identity"]:
            raise UserError(
                f"{path} was made from data that are not drawn here: only models of drawn scenes are released"
            )
    if not of_same_pictures([about["identity"] for _, about in exports.values()]):
        raise UserError(f"{context.folder('')}: its stages were trained on different pictures; train them again on one")
    return exports


def main(context: Context) -> None:
    to, config = Path(context.arguments.to), context.config
    exports = read_exports(context)
    losses = {kind: rounding_error(exports, kind) for kind in TYPES}
    kind = min(TYPES, key=losses.__getitem__)
    with made_whole(to) as partly:
        new = {
            stage: save_export(partly / stage / "export.safetensors", tensors, about)
            for stage, (tensors, about) in rounded(exports, kind).items()
        }
        hashes = {stage: (about["sha256"], new[stage]) for stage, (_, about) in exports.items()}
        named = derive(config, [f"name={to.name}", f"root={to.parent.as_posix()}", "uses={}", "device=auto"])
        text = yaml.safe_dump(named.model_dump(mode="json"), sort_keys=False)
        write_atomically(partly / "config.yaml", text.encode())
        reports = write_card(
            context, partly, {stage: about for stage, (_, about) in exports.items()}, hashes, kind, losses
        )
        write_atomically(partly / FIGURES, (json.dumps(figures_of(reports, new), indent=2) + "\n").encode())
        files = sorted(path for path in partly.rglob("*") if path.is_file())
        sizes = {path.relative_to(partly).as_posix(): path.stat().st_size for path in files}
        size, largest = sum(sizes.values()), max(sizes, key=lambda name: sizes[name])
        if size > LIMIT:
            raise UserError(
                f"{size / 2**20:.1f} MiB are more than the {LIMIT / 2**20:.0f} MiB that a clone may carry ({largest}: "
                f"{sizes[largest] / 2**20:.1f} MiB); train smaller networks"
            )
        manifest = {name: {"sha256": sha256_of_file(partly / name), "bytes": sizes[name]} for name in sizes}
        write_atomically(partly / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
        if to.exists():
            print(f"the old release is now {move_aside(to)}")
    shown = ", ".join(f"{DTYPES[one]} {loss:.1e}" for one, loss in losses.items())
    print(f"{to}: {', '.join(exports)}; {size / 2**20:.1f} MiB in {DTYPES[kind]} (largest relative error: {shown})")


if __name__ == "__main__":
    run_command(COMMANDS["use.release"], main)
