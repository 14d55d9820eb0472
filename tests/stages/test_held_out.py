"""Label sets never seen, with a small vocabulary."""

import itertools
import json

import pytest
import torch

from data.labels import CLEVR, Vocabulary, withheld
from stages.engine.errors import UserError
from stages.experiments.held_out import label_sets
from tests.data.folder import write_folder


def all_sets(names):
    """Returns the multi-hot labels of all pairs and triples of `names` names."""
    rows = [c for k in (2, 3) for c in itertools.combinations(range(names), k)]
    return torch.stack([torch.eye(names)[list(row)].sum(0) for row in rows])


@pytest.mark.parametrize(("names", "larger"), [(4, []), (5, ["four objects"]), (6, ["four objects", "five objects"])])
def test_sets_of_all_names_are_not_asked_for(names, larger):
    sets = label_sets(all_sets(names), Vocabulary(CLEVR.names[:names]), 0.5, 0)
    assert list(sets) == ["seen", "withheld", *larger]
    for name in larger:
        count = {"four objects": 4, "five objects": 5}[name]
        assert (sets[name].labels.sum(1) == count).all() and len(sets[name]) == 64


def test_neither_are_they_where_training_has_them():
    with pytest.raises(UserError, match="of 0 label sets of two or more objects"):
        label_sets(torch.ones(1, 2), Vocabulary(CLEVR.names[:2]), 0.5, 0)
    sets = label_sets(all_sets(3), Vocabulary(CLEVR.names[:3]), 0.5, 0)
    assert list(sets) == ["seen", "withheld"]
    assert all((asked.labels.sum(1) == 2).all() for asked in sets.values())


def test_where_nothing_is_withheld_it_says_what_to_do():
    with pytest.raises(UserError, match=r"of 10 label sets .*data.withhold=0.1 withholds none.*set data.withhold=0.5"):
        label_sets(all_sets(4), Vocabulary(CLEVR.names[:4]), 0.1, 0)


def test_four_names_are_enough(stage, tmp_path):
    folder, names = write_folder(tmp_path / "d", scenes=24), CLEVR.names[:4]
    orders = list(itertools.permutations(names, 3))
    pictures = json.loads((folder / "train.json").read_text())
    labels = {picture: orders[int(picture[12:18])][: len(row)] for picture, row in pictures.items()}
    for file, content in (("train", labels), ("objects", {name: i for i, name in enumerate(names)})):
        (folder / f"{file}.json").write_text(json.dumps(content))
    for file in ("test", "new_test"):
        (folder / f"{file}.json").write_text(json.dumps([names[:1], names[1:3]]))
    settings = [
        f"{name}.{key}" for name in ("evaluator", "reader", "vae", "ldm", "gan") for key in ("steps=1", "batch=4")
    ]
    settings += ["vae.codebook.start=0", "vae.discriminator.start=0", "data.withhold=0.5"]
    settings += ["eval.seeds=[0]", "eval.batch=4"]
    settings += [f"root={tmp_path}", f"data.folder={folder}", "data.validation_every=6"]
    for name in ("evaluator", "reader", "vae", "ldm", "gan", "evaluate", "held_out"):
        status, said = stage(name, *settings)
        assert status == 0, said
    assert "held_out" in json.loads((tmp_path / "smoke/eval/report.json").read_text())["results"]["ldm"]
    result = json.loads((tmp_path / "smoke/held-out/report.json").read_text())
    assert [*result["ldm"]] == [*result["gan"]] == ["seen", "withheld"]


def test_what_is_called_withheld_is_what_training_leaves_out():
    """Otherwise the accuracy on sets never seen would be that on seen ones."""
    every = all_sets(6)
    sets = label_sets(torch.cat([every, torch.eye(6)]), Vocabulary(CLEVR.names[:6]), 0.5, 0)
    seen, hidden = ({tuple(row) for row in sets[name].labels.tolist()} for name in ("seen", "withheld"))
    assert all(withheld(sets["withheld"].objects, 0.5)) and not any(withheld(sets["seen"].objects, 0.5))
    assert len(seen) + len(hidden) == len(every) and not seen & hidden
    assert seen | hidden == {tuple(row) for row in every.tolist()}, "pairs and triples, each once"
