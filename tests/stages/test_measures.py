"""What `make compare`, `make ablations`, `make samplers` and `make pace` measure, on made-up pictures and logs."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from models.condition import Condition
from models.distances import mean_pairwise_distance
from stages.engine.config import derive
from stages.engine.errors import UserError
from stages.experiments import ablations, compare, pace
from stages.experiments.ablations import spread
from stages.experiments.compare import ALIKE, _row, alike_sets, diversity
from stages.experiments.samplers import choices
from tests.stages.handful import context_with, noise_pictures


def test_diversity_is_the_mean_over_label_sets_of_pictures_of_one_set(tmp_path):
    asked, seen = Condition.of_lists([[i] for i in range(9)], 9), []
    dataset = replace(noise_pictures(tmp_path), test_sets={"test": asked, "new_test": asked[:1]})

    def sample(condition, keys, how):
        (index,) = set(condition.objects[:, 0].tolist())
        seen.append((index, len(set(keys))))
        return torch.randn(len(condition), 3, 4, 4, generator=torch.Generator().manual_seed(index)) * (1 + index)

    found, pictures = diversity(SimpleNamespace(sample=sample), dataset, context_with())
    assert seen == [(index, ALIKE) for index in (0, 2, 4, 6, 8)] and [*alike_sets(3)] == [0, 1, 2]
    wanted = [mean_pairwise_distance(sample(asked[[i]].repeat(ALIKE), range(ALIKE), None)) for i in (0, 2, 4, 6, 8)]
    assert found == pytest.approx(sum(wanted) / len(wanted))
    assert mean_pairwise_distance(pictures) == pytest.approx(wanted[0])


def test_a_single_held_out_picture_is_too_few_for_a_distance(monkeypatch, tmp_path):
    pictures = noise_pictures(tmp_path)
    dataset = replace(pictures, held_out_images=pictures.images[:1], held_out_conditions=pictures.conditions[:1])
    for name, made in (("load_dataset", dataset), ("load_evaluator", (None, {})), ("trained_models", ["ldm"])):
        monkeypatch.setattr(compare, name, lambda *given, made=made: made)
    monkeypatch.setattr(compare, "refuse_other_pictures", lambda *given: None)
    with pytest.raises(UserError, match="holds out 1 picture, and a distance needs two"):
        compare.main(replace(context_with(), arguments=SimpleNamespace(pictures=300)))


def test_a_row_of_the_comparison_has_minutes_and_the_time_of_one_picture():
    accuracies = {name: {"accuracy": 0.9, "std": 0.01} for name in ("test", "new_test")}
    result = {"accuracy": accuracies, "training_seconds": 90.0, "training_memory_bytes": 2**31}
    result |= {"pictures_per_second": 40.0, "frechet_distance_on_evaluator_features": 12.34}
    result |= {"mean_pairwise_distance": 0.2, "variety": {"one_layout": 0.1, "over_layouts": 0.3}}
    cells = ["1.5 min", "2.0 GiB", "25.0 ms", "12.3", 0.2, 0.1, 0.3]
    assert _row("x", result) == ["x", "0.900 ± 0.010", "0.900 ± 0.010", *cells]


def test_the_deviation_over_trainings_is_of_a_sample():
    assert spread([0.5, 0.7, 0.9]) == (pytest.approx(0.7), pytest.approx(0.2))
    assert spread([0.5]) == (0.5, 0.0)


def test_a_value_that_only_changes_sampling_is_sampled_so(monkeypatch):
    """One model is trained a seed; each value's accuracy is the mean over the evaluation's seeds."""
    none = ({}, {})
    monkeypatch.setattr(ablations, "load_dataset", lambda *given: SimpleNamespace(vocabulary=[]))
    monkeypatch.setattr(ablations, "load_evaluator", lambda *given: none)
    monkeypatch.setattr(ablations, "refuse_other_pictures", lambda *given: None)
    trained = []
    model = SimpleNamespace(train=lambda context: trained.append(context), load=lambda context: none)
    monkeypatch.setattr(ablations, "MODELS", {"ldm": model})

    def evaluated(sampler, judge, dataset, context):
        return {"test": {"per_seed": [context.config.eval.guidance / 10, context.config.seed / 10]}}

    monkeypatch.setattr(ablations, "evaluate_sets", evaluated)
    variants = {"": [context_with(f"seed={seed}") for seed in (1, 3)]}
    found = ablations.run_group("guidance", variants)
    assert list(found) == ["1", "2", "3", "4", "6"] and len(trained) == 2
    assert found["6"]["test"] == pytest.approx([0.35, 0.45]) and found["1"]["test"] == pytest.approx([0.1, 0.2])


def test_samplers_are_compared_with_their_own_steps_and_ddim_without_noise():
    config, found = context_with("eval.eta=0.5", "eval.sampler=dpm-solver++").config, choices(100)
    how = {name: derive(config, overrides).eval for name, overrides in found.items()}
    assert how["DDPM, 100 steps"].sampler == "ancestral"
    of_ddim = [(eval_.sampler, eval_.steps, eval_.eta) for name, eval_ in how.items() if name.startswith("DDIM")]
    assert of_ddim == [("ddim", steps, 0.0) for steps in (100, 50, 25, 10, 5)]
    others = [(eval_.sampler, eval_.steps) for name, eval_ in how.items() if name.startswith("DPM")]
    assert others == [("dpm-solver++", steps) for steps in (20, 10, 5)]
    assert [*choices(5)] == ["DDPM, 5 steps", "DDIM, 5 steps", "DPM-Solver++, 5 steps"]


def test_the_time_of_passing_is_that_of_all_sets_with_the_autoencoder_s(monkeypatch, tmp_path):
    accuracies = [(0.9, 0.1), (0.5, 0.9), (0.8, 0.7), (0.95, 0.95)]
    lines = [
        {"step": step, "seconds": 10.0 * step, "accuracy_test": test, "accuracy_new_test": new}
        for step, (test, new) in enumerate(accuracies, 1)
    ]
    context = context_with(f"root={tmp_path}")
    context.folder("ldm").mkdir(parents=True)
    text = [json.dumps(line) for line in ({"step": 1, "loss": 1.0}, *lines)]
    (context.folder("ldm") / "metrics.jsonl").write_text("\n".join(text))
    asked = []
    monkeypatch.setattr(pace, "train_vae", lambda variant: None)
    monkeypatch.setattr(pace, "train_ldm", lambda variant, until: asked.append(until))
    monkeypatch.setattr(pace, "read_about", lambda *given: {"seconds": 100.0})
    found = pace.measure(context, 0.6, to_the_end=False)
    assert found["seconds"] == 130.0 and found["vae_seconds"] == 100.0
    assert found["previews"] == [(100.0 + 10 * i, [*pair]) for i, pair in enumerate(accuracies, 1)]
    assert [asked[0](line) for line in ({"step": 1}, *lines)] == [False, False, False, True, True]
    assert pace.measure(context, 0.97, to_the_end=True)["seconds"] is None and asked[1] is None
    assert pace.measure(context, 0.7, to_the_end=False)["seconds"] == 140.0, "above it, not just at it"
