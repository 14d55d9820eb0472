"""`make judges`: trains evaluators of two more seeds, by which nothing is chosen, and measures how far judges agree."""

from torch import Tensor

from models.evaluator import Evaluator, agreement, found_labels
from stages.commands import COMMANDS
from stages.engine.command import JUDGES, Context, run_command
from stages.engine.dataset import load_dataset
from stages.engine.log import say
from stages.evaluator import main as train_evaluator
from stages.judge import load_evaluator, refuse_other_pictures, scores

FIRST_SEED = 2  # beyond the experiment's own: the next one is the guide's of classifier guidance


def another_evaluator(context: Context, name: str, beyond: int) -> Context:
    """Returns an experiment that trains another evaluator, even if ours is the lab's, `beyond` seeds after ours."""
    return context.derived(name, "uses={}", f"seed={context.config.seed + beyond}", "evaluator.checkpoint=null")


def main(context: Context) -> None:
    for i, role in enumerate(JUDGES):
        train_evaluator(another_evaluator(context, context.experiment_of(role), FIRST_SEED + i))
    dataset = load_dataset(context.config, context.device)
    images, labels = dataset.held_out_images, dataset.held_out_labels
    found: list[Tensor] = []
    for role in ("evaluator", *JUDGES):
        judge: Evaluator
        judge, about = load_evaluator(context, len(dataset.vocabulary), role)
        refuse_other_pictures(context, {role: about}, dataset)
        found.append(found_labels(scores(judge, images, context), labels))
        say(f"{context.config.name}: {role}, accuracy {about['real_accuracy']:.3f} on held-out pictures")
    alike = agreement(found, labels)
    print(f"all {len(found)} judges agree on {alike:.3f} of the labels of {len(images)} held-out pictures")


if __name__ == "__main__":
    run_command(COMMANDS["experiments.judges"], main)
