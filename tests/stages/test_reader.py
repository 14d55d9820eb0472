"""The reader's stage trains on pictures with all places known, resumes to the bit, and is measured."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from models.condition import Condition
from stages.engine.draws import Draws
from stages.engine.export import load_export, read_about
from stages.judge import evaluate_held_out, load_reader
from stages.reader import ReaderTask, figures_on_real, nothing_to_read, readable, words_of
from tests.data.folder import write_folder
from tests.stages.handful import DEVICE, context_with, noise_pictures

A, B = (0.5, 0.5), (0.7, 0.7)


def some_known(tmp_path):
    """Returns eight pictures, all held out too; the first, third and eighth know the places of all their objects."""
    dataset = noise_pictures(tmp_path)
    objects = [[0, 1], [0, 1], [2], [1], [0], [1, 2], [0], [2, 0]]
    places = [[A, B], [A, None], [A], [None], [None], [None, A], [None], [B, A]]
    conditions = Condition.of_lists(objects, 3, places)
    return replace(dataset, conditions=conditions, held_out_images=dataset.images, held_out_conditions=conditions)


def test_it_learns_from_and_is_measured_on_wholly_known_pictures_alone(tmp_path):
    dataset, context = some_known(tmp_path), context_with("reader.batch=4")
    task = ReaderTask(context, dataset)
    assert task.rows[torch.arange(3)].tolist() == readable(dataset).tolist() == [0, 2, 7]
    assert readable(dataset, 2).tolist() == [0, 7]
    shown = []
    pictures = type(dataset).pictures
    task.dataset = type(
        "Watched", (), {"pictures": lambda _, index, *coming: shown.append(index) or pictures(dataset, index)}
    )()
    task.dataset.conditions = dataset.conditions
    for step in range(3):
        metrics = task.step(step, Draws(0, "reader", step, 4, DEVICE))
        assert all(torch.isfinite(torch.as_tensor(value)) for value in metrics.values())
    assert set(torch.cat(shown).tolist()) == {0, 2, 7}
    figures = figures_on_real(task.ema.average, dataset, readable(dataset), context)
    assert figures["pictures"] == 3 and 0 <= figures["not_found"] <= 1


def test_where_nothing_is_known_it_says_so(tmp_path):
    dataset = some_known(tmp_path)
    assert nothing_to_read(dataset) is None
    unknown = Condition.of_lists([[0], [1, 2]], 3, [[None], [A, None]])
    assert "nothing to read: no held-out picture" in nothing_to_read(replace(dataset, held_out_conditions=unknown))
    words = nothing_to_read(replace(dataset, conditions=unknown, held_out_conditions=unknown))
    assert "nothing to read: no training and no held-out picture" in words


def test_pictures_without_places_are_one_line_and_no_fault(stage, tmp_path):
    folder = write_folder(tmp_path / "d", places=False)
    arguments = (f"root={tmp_path}", f"data.folder={folder}", "data.validation_every=3", "ldm.network.places=false")
    status, said = stage("reader", *arguments)
    assert status == 0, said
    assert said.count("there is nothing to read") == 1
    assert not (tmp_path / "smoke/reader/export.safetensors").exists()


def test_its_export_holds_its_metrics(chain):
    about = read_about(chain / "smoke/reader/export.safetensors", "")
    last = json.loads((chain / "smoke/reader/metrics.jsonl").read_text().splitlines()[-1])
    assert about["parents"].keys() == {"data", "scenes", "places"} and all(about["parents"].values())
    assert about["metrics"]["pictures"] == last["pictures"] > 0
    assert about["metrics"]["not_found"] == pytest.approx(last["not_found"])


def test_a_placement_error_names_the_share_of_objects_it_covers():
    figures = {"placement_error_pixels": 0.5, "not_found": 0.25, "too_many": 0.0, "too_few": 0.5, "accuracy": 1.0}
    assert "placement error 0.50 pixels over the 0.750 found" in words_of(figures | {"pictures": 8})
    none = figures | {"pictures": 8, "placement_error_pixels": None, "not_found": 1.0}
    assert "no object is found" in words_of(none)


def test_a_resumed_run_equals_an_uninterrupted_one(stage, chain, tmp_path):
    """Resumed from its checkpoint of step 4, it gives the same tensors, bit for bit."""
    shutil.copytree(chain / "smoke/reader", tmp_path / "smoke/reader")
    whole = load_export(tmp_path / "smoke/reader/export.safetensors", "")[0]
    (tmp_path / "smoke/reader/export.safetensors").unlink()
    (tmp_path / "smoke/reader/step-00000006.ckpt").unlink()
    status, said = stage("reader", f"root={tmp_path}", f"data.folder={chain}/smoke/render")
    assert status == 0 and "continuing at step 4" in said, said
    again = load_export(tmp_path / "smoke/reader/export.safetensors", "")[0]
    assert again.keys() == whole.keys() and all(torch.equal(again[name], whole[name]) for name in whole)


def test_a_sampler_that_gives_the_real_pictures_is_judged_as_they_are(tmp_path):
    """A sampler that draws exactly what held-out pictures show gets the reader's figures on them."""
    dataset, context = some_known(tmp_path), context_with("reader.batch=4")
    reader, rows = ReaderTask(context, dataset).ema.average, readable(dataset)
    own = figures_on_real(reader, dataset, rows, context)
    asked = []

    class Sampler:
        takes_places = True

        def sample(self, condition, keys, how):
            asked.append(condition)
            return dataset.held_out_images[rows].float() / 127.5 - 1

    class Judge(torch.nn.Module):
        def logits(self, images):
            return dataset.held_out_conditions[rows].labels

    shown = dataset.held_out_conditions[rows]
    turned = shown.with_turns(torch.where(shown.present, 0.25, -1.0))
    found = evaluate_held_out(Sampler(), Judge(), reader, turned, context)
    assert not any(condition.turned.any() for condition in asked), "how objects are turned is not told"
    assert (found["accuracy_given"], found["accuracy_chosen"]) == (1, 1)
    assert {key: found[key] for key in own.keys() - {"accuracy", "pictures"}} == {
        key: own[key] for key in own.keys() - {"accuracy", "pictures"}
    }
    assert not asked[0].placed.any() and asked[1].wholly_placed.all()
    Sampler.takes_places = False
    found = evaluate_held_out(Sampler(), Judge(), reader, dataset.held_out_conditions[rows], context)
    assert found["accuracy_given"] is found["placement_error_pixels"] is found["not_found"] is None
    assert (found["accuracy_chosen"], found["too_few"]) == (1, own["too_few"])


def test_a_reader_is_loaded_for_an_experiments_variants(chain):
    context = context_with(f"root={chain}")
    reader, about = load_reader(context.derived("another"))
    assert about["sha256"] == read_about(chain / "smoke/reader/export.safetensors", "")["sha256"]
    assert not any(p.requires_grad for p in reader.parameters())
