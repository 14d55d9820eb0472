"""Helpers for tests of a one-step generator: its context beside the smoke chain, and its training."""

from argparse import Namespace
from dataclasses import replace

from stages.onestep import main
from tests.stages.handful import context_with


def context_of(root, *changes, fresh=False, name="pupil"):
    uses = "uses={evaluator: smoke, vae: smoke, ldm: smoke}"
    settings = (f"root={root}", f"name={name}", uses, f"data.folder={root}/smoke/render", "eval.seeds=[0]")
    made = context_with(*settings, *changes)
    return replace(made, arguments=Namespace(config="configs/smoke.yaml", fresh=fresh, overrides=[]))


def distil(context):
    """Runs the stage and releases its folder, as the end of a command does."""
    with context.held:
        main(context)
    return context.folder("onestep")
