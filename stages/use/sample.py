"""`make sample LABELS="red cube, cyan sphere"`: draws pictures, or their denoising, with a trained model."""

from stages.commands import COMMANDS
from stages.engine.command import Context, run_command
from stages.use.library import Experiment
from stages.use.output import check_sheet, is_moving, moving, still


def main(context: Context) -> None:
    a = context.arguments
    check_sheet(a.out, a.count, context.config.data.size)
    experiment = Experiment(context, a.model or context.config.drawer)
    if is_moving(a.out, a.animate):
        frames = experiment.denoising(a.labels, a.count, a.seed, steps=a.steps, guidance=a.guidance)
        moving(a.out, frames)
    else:
        still(a.out, experiment.draw(a.labels, a.count, a.seed, steps=a.steps, guidance=a.guidance))
    print(a.out)


if __name__ == "__main__":
    run_command(COMMANDS["use.sample"], main)
