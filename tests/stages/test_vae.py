"""The parts of the autoencoder's loss and how they are weighted."""

import copy
from dataclasses import replace

import pytest
import torch

import stages.judge
import stages.vae
from data.foreground import difference_error, median_picture, pixel_weights
from data.images import to_unit
from models.condition import Condition
from models.vqvae import VQVAE
from models.windows import window_of, windows
from stages.engine.config import load
from stages.engine.dataset import load_dataset
from stages.engine.draws import Draws
from stages.engine.errors import UserError
from stages.engine.export import load_export
from stages.engine.log import read_metrics
from stages.engine.schema import Vae
from stages.judge import measure_vae, shows_nothing
from stages.vae import VaeTask, build_vae
from tests.conftest import HERE, SMOKE
from tests.data.folder import write_folder
from tests.stages.handful import DEVICE, context_with, noise_pictures


def loss_of(images, made, background, foreground):
    return (pixel_weights(images, background, foreground) * (made - images).square()).mean().item()


def test_an_error_on_an_object_weighs_more_than_one_on_the_floor():
    background = torch.zeros(1, 3, 64, 64)
    images = background.repeat(1, 1, 1, 1)
    images[:, :, 20:30, 20:30] = 0.8
    on_object, on_floor = images.clone(), images.clone()
    on_object[:, :, 25, 25] += 0.5
    on_floor[:, :, 50, 50] += 0.5
    plain = 0.25 / 64**2
    assert loss_of(images, on_floor, background, 9.0) == torch.tensor(plain).item()
    assert abs(loss_of(images, on_object, background, 9.0) - 10 * plain) < 1e-7
    assert abs(loss_of(images, on_object, None, 9.0) - plain) < 1e-9


def test_a_blurred_edge_counts_more_than_the_same_error_spread_out():
    weights = torch.ones(1, 1, 64, 64)
    spread, edge = torch.full((1, 3, 64, 64), 0.1), torch.zeros(1, 3, 64, 64)
    edge[..., 31], edge[..., 32] = 0.4, -0.4
    assert difference_error(spread, weights).item() == 0.0
    expected = (0.4**2 + 0.8**2 + 0.4**2) / 63  # a mean over the 63 columns of pairs
    assert difference_error(edge, weights).item() == pytest.approx(expected, rel=1e-5)
    heavier = weights.clone()
    heavier[..., 40:] = 10
    assert difference_error(edge, heavier).item() == pytest.approx(expected, rel=1e-5), "only pairs with an error"
    assert difference_error(edge, 10 * weights).item() == pytest.approx(10 * expected, rel=1e-5)


def test_the_weight_of_edges_is_part_of_the_loss_that_moves_the_network(monkeypatch, tmp_path):
    dataset = noise_pictures(tmp_path)
    plain, task = a_task(monkeypatch, dataset), a_task(monkeypatch, dataset, "vae.edges=0.5")
    metrics = [each.step(0, Draws(0, "vae", 0, 4, DEVICE)) for each in (plain, task)]
    assert "edges" not in metrics[0] and metrics[1]["edges"] > 0
    assert metrics[0]["reconstruction"] == metrics[1]["reconstruction"]
    assert not plain.network.decoder.last.weight.equal(task.network.decoder.last.weight)


def test_windows_are_around_an_object_and_within_the_picture():
    places = [[(0.1, 0.9)], [(0.5, 0.5), (0.95, 0.05)], [None]]
    condition = Condition.of_lists([[0], [1, 2], [3]], 5, places).to(DEVICE)
    seen = [set(), set(), set()]
    for step in range(200):
        found = zip(*windows(condition, Draws(0, "vae", step, 3, DEVICE).uniform, 8), strict=True)
        for row, corner in enumerate(found):
            seen[row].add(tuple(v.item() for v in corner))
    assert seen[0] == {(4, 0)}
    assert (0, 4) in seen[1] and len(seen[1]) > 4
    for row, column in seen[1]:  # the centre of one of the two objects is inside, at least half a cell from the rim
        assert any(c + 0.5 <= 8 * x <= c + 3.5 for x in (0.5, 0.95) for c in (column,)) or column == 4
        assert 0 <= row <= 4
    assert len(seen[2]) > 15


def test_a_window_is_cut_out_of_pixels_and_cells_alike():
    maps = torch.arange(64.0).view(1, 1, 8, 8).repeat(2, 1, 1, 1)
    row, column = torch.tensor([0, 3]), torch.tensor([4, 1])
    cells = window_of(maps, row, column, 1)
    torch.testing.assert_close(cells[0, 0], maps[0, 0, 0:4, 4:8])
    torch.testing.assert_close(cells[1, 0], maps[1, 0, 3:7, 1:5])
    pixels = window_of(maps.repeat_interleave(8, 2).repeat_interleave(8, 3), row, column, 8)
    torch.testing.assert_close(pixels[..., ::8, ::8], cells)


def test_the_median_picture_is_the_scenery():
    images = torch.full((9, 3, 64, 64), 100, dtype=torch.uint8)
    for i in range(9):
        images[i, :, 5 * i : 5 * i + 6, 20:30] = 255  # an object that is elsewhere in each picture
    assert torch.allclose(median_picture(images, images.device), torch.tensor(100 / 127.5 - 1), atol=1e-6)


@pytest.mark.parametrize(("read", "said"), [(0.099, True), (0.24, True), (0.6, False)])
def test_reconstructions_that_show_the_judge_nothing_give_a_warning(read, said):
    words = shows_nothing({"reconstruction_accuracy": read, "original_accuracy": 0.977})
    assert bool(words) == said
    assert not said or (f"{read:.3f}" in words and "vae.learning_rate" in words)


def test_the_labels_shape_the_latents(chain):
    """The classification is part of the run; its weights are not part of the autoencoder."""
    losses = [
        line["classification"] for line in read_metrics(chain / "smoke/vae/metrics.jsonl") if "commitment" in line
    ]
    assert losses and all(loss > 0 for loss in losses)
    tensors, _ = load_export(chain / "smoke/vae/export.safetensors", "")
    assert not any("classifier" in name or "score" in name for name in tensors)


def test_the_classification_moves_the_encoder_and_the_classifier(monkeypatch, tmp_path):
    monkeypatch.setattr(stages.vae, "load_evaluator", lambda context, classes: (None, {}))
    dataset = noise_pictures(tmp_path)

    def after_a_step(weight):
        task = VaeTask(context_with("vae.batch=4", f"vae.label_weight={weight}"), dataset)
        before = copy.deepcopy(task.classifier)
        task.step(0, Draws(0, "vae", 0, 4, DEVICE))
        return task, before

    (plain, _), (task, before) = after_a_step(0.0), after_a_step(0.5)
    assert plain.classifier is None and "classifier" not in plain.parts
    assert task.parts["classifier"] is task.classifier
    assert not torch.equal(task.classifier.score.weight, before.score.weight)
    pairs = zip(task.network.encoder.parameters(), plain.network.encoder.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    pairs = zip(task.network.decoder.parameters(), plain.network.decoder.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), "the classification must depend on the latents only"


def a_task(monkeypatch, dataset, *changes):
    monkeypatch.setattr(stages.vae, "load_evaluator", lambda context, classes: (None, {}))
    return VaeTask(context_with("vae.batch=4", "vae.label_weight=0", *changes), dataset)


def test_a_late_preview_warns_of_collapsed_latents(monkeypatch, tmp_path, capsys):
    task = a_task(monkeypatch, noise_pictures(tmp_path))
    black = torch.zeros(16, 3, 64, 64)
    monkeypatch.setattr("stages.vae.reconstruct", lambda vae, images, *how: (black[: len(images)], None))
    for step, read, warns in ((499, 0.1, False), (500, 0.1, True), (500, 0.9, False)):
        measured = {"reconstruction_accuracy": read, "original_accuracy": 0.97}
        monkeypatch.setattr(task, "measure", lambda most, measured=measured: measured)
        assert task.preview(step)[0] == measured
        assert ("latents have collapsed" in capsys.readouterr().err) == warns


def placed_pictures(folder):
    dataset = noise_pictures(folder)
    places = torch.rand(8, 1, 2, generator=torch.Generator().manual_seed(0))
    return replace(dataset, conditions=dataset.conditions.with_places(places), places_sha256="some")


def what_the_decoder_gets(task, latents):
    """Returns what the decoder is given at step 0, and the codes' indices."""
    given, indices, _ = task.given(latents, True, Draws(0, "vae", 0, 4, DEVICE))
    return given.detach(), indices


def test_a_share_of_rows_is_decoded_as_it_is_and_the_others_by_their_codes(monkeypatch, tmp_path):
    dataset = noise_pictures(tmp_path)
    latents = torch.randn(4, 6, 8, 8)
    for share, expected in ((1.0, latents), (0.0, latents.round().clamp(-3, 3))):
        task = a_task(monkeypatch, dataset, "vae.quantizer=fsq", f"vae.unquantized={share}", "vae.decodes=latents")
        given, indices = what_the_decoder_gets(task, latents)
        torch.testing.assert_close(given, expected)
        assert indices.equal(task.network.quantizer.nearest(latents)), "codes are counted either way"
    task = a_task(monkeypatch, dataset, "vae.quantizer=fsq", "vae.unquantized=0.5")
    given, _ = what_the_decoder_gets(task, latents)
    quantised = (given - latents.round().clamp(-3, 3)).abs().amax((1, 2, 3)) < 1e-5
    kept = Draws(0, "vae", 0, 4, DEVICE).uniform(1, 1, 1).flatten() < 0.5
    assert quantised.equal(~kept) and 0 < kept.sum() < 4


def test_the_decoder_s_noise_is_in_units_of_each_channel_s_deviation(monkeypatch, tmp_path):
    """Each row has a separate amount; relative to a channel's deviation it is the same in all channels."""
    task = a_task(monkeypatch, noise_pictures(tmp_path), "vae.quantizer=fsq", "vae.decoder_noise=0.2")
    scales = torch.tensor([0.1, 0.5, 1.0, 2.0, 3.0, 3.0])[None, :, None, None]
    latents = scales * torch.randn(4, 6, 8, 8)
    given, _ = what_the_decoder_gets(task, latents)
    noise = (given - latents.round().clamp(-3, 3)) / latents.std((0, 2, 3), correction=0, keepdim=True)
    draws = Draws(0, "vae", 0, 4, DEVICE)
    amount = 0.2 * draws.normal(1, 1, 1).abs()
    torch.testing.assert_close(noise, amount * draws.normal(6, 8, 8), atol=1e-4, rtol=1e-3)
    assert amount.unique().numel() == 4


def test_the_places_teach_the_latents_what_a_cell_shows(monkeypatch, tmp_path):
    dataset = placed_pictures(tmp_path)
    task = a_task(monkeypatch, dataset, "vae.cell_weight=0.3")
    before = copy.deepcopy(task.cells)
    metrics = task.step(0, Draws(0, "vae", 0, 4, DEVICE))
    assert metrics["cells"] > 0 and task.parts["cells"] is task.cells
    assert not task.cells.weight.equal(before.weight)
    plain = a_task(monkeypatch, dataset)
    plain.step(0, Draws(0, "vae", 0, 4, DEVICE))
    assert plain.cells is None
    pairs = zip(task.network.encoder.parameters(), plain.network.encoder.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_cells_without_places_are_refused_before_anything_is_trained(tmp_path):
    folder = write_folder(tmp_path / "d", places=False)
    overrides = [f"root={tmp_path}", f"data.folder={folder}", "data.validation_every=3", "vae.cell_weight=0.3"]
    with pytest.raises(UserError, match=r"vae\.cell_weight.* or set vae\.cell_weight=0\.0"):
        load_dataset(load(HERE / SMOKE, overrides), DEVICE)


@pytest.mark.parametrize("decodes", ["codes", "latents"])
@pytest.mark.parametrize("quantizer", ["codebook", "fsq", "residual"])
def test_reconstructions_are_judged_as_samples_are_decoded_and_the_other_way_beside(
    quantizer, decodes, monkeypatch, tmp_path
):
    """The judge recognises pictures decoded by codes, so each figure shows which way it was measured."""
    options = {"codebook": {"codes": 16, "init": "uniform"}, "fsq": {"levels": 3}}
    options["residual"] = {"codes": 4, "quantizers": 2, "decay": 0.9, "commitment": 0.25, "dead_below": 0.0}
    torch.manual_seed(0)
    vae = VQVAE((8, 8, 8), quantizer=quantizer, options=options[quantizer], decodes=decodes)
    vae.encoder.body[-1].weight.data.mul_(20)
    vae(torch.randn(8, 3, 64, 64))  # starts a codebook by k-means
    vae.eval()
    pictures = noise_pictures(tmp_path)
    dataset = replace(pictures, held_out_images=pictures.images, held_out_conditions=pictures.conditions)
    by_codes = vae(to_unit(pictures.images), True)[0].clamp(-1, 1)

    def scores(judge, images, context):
        good = images.dtype != torch.uint8 and torch.allclose(images, by_codes, atol=1e-5)
        return dataset.held_out_labels if good else 1 - dataset.held_out_labels

    monkeypatch.setattr(stages.judge, "scores", scores)
    found = measure_vae(vae, None, dataset, context_with())
    of_codes, of_latents = ("", "_from_latents") if decodes == "codes" else ("_from_codes", "")
    assert found[f"reconstruction_accuracy{of_codes}"] == 1
    assert found[f"reconstruction_accuracy{of_latents}"] == 0
    used = vae(to_unit(pictures.images))[1].unique()
    assert found["codes_in_use"] == len(used)
    assert found["codebook_use"] == len(used) / vae.quantizer.codebook_size
    assert 1 < found["codebook_perplexity"] <= len(used)


def test_held_out_pictures_are_measured_in_parts_with_the_figures_of_the_whole(monkeypatch, tmp_path):
    torch.manual_seed(0)
    vae, few = VQVAE((8, 8, 8), quantizer="fsq", options={"levels": 3}).eval(), noise_pictures(tmp_path)
    vae.encoder.body[-1].weight.data.mul_(20)
    images, classes = torch.randint(256, (300, 3, 64, 64), dtype=torch.uint8), 3
    conditions = Condition.of_lists([[i % 3] for i in range(300)], classes)
    dataset, sizes = replace(few, held_out_images=images, held_out_conditions=conditions), []

    def scores(judge, images, context):
        sizes.append(len(images))
        values = images.float().mean((2, 3))  # as many channels as classes
        return values * 997 % 1 if judge == "other" else values

    monkeypatch.setattr(stages.judge, "scores", scores)
    vae.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    found = measure_vae(vae, None, dataset, context_with(), others={"judge1": "other"})
    assert set(sizes) == {256, 44}
    with torch.no_grad():
        made, codes, _ = vae(to_unit(images))
    error = ((made.clamp(-1, 1) - to_unit(images)) / 2).square().mean()
    assert found["psnr"] == pytest.approx(-10 * error.log10().item(), rel=1e-6)
    assert found["codes_in_use"] == len(codes.unique())
    assert found["original_accuracy"] == stages.judge.accuracy(images.float().mean((2, 3)), conditions.labels)
    assert found["reconstruction_accuracy"] == stages.judge.accuracy(made.clamp(-1, 1).mean((2, 3)), conditions.labels)
    by_the_other = stages.judge.accuracy(made.clamp(-1, 1).mean((2, 3)) * 997 % 1, conditions.labels)
    assert found["reconstruction_accuracy_by_judge1"] == by_the_other != found["reconstruction_accuracy"]
    sizes.clear()
    assert "reconstruction_accuracy_by_judge1" not in measure_vae(vae, None, dataset, context_with(), most=10)
    assert set(sizes) == {10}


def test_at_most_so_many_held_out_pictures_are_spread_over_all_with_their_labels(tmp_path):
    few = noise_pictures(tmp_path)
    dataset = replace(few, held_out_images=few.images, held_out_conditions=few.conditions)
    assert dataset.held_out()[0] is dataset.held_out(8)[0] is few.images
    images, labels = dataset.held_out(3)
    rows = [0, 4, 7]
    assert images.equal(few.images[rows]) and labels.equal(few.conditions.labels[rows])


def test_an_export_that_knows_no_quantisers_is_a_codebook_decoded_by_codes():
    """Its configuration has none of the newer keys, and its tensors have the old names."""
    newer = {"quantizer", "fsq", "residual", "decodes", "decoder_noise", "unquantized", "cell_weight"}
    content = Vae(steps=6, batch=8, learning_rate=1e-3, codebook={"codes": 16}).model_dump(mode="json")
    settings = Vae.model_validate({k: v for k, v in content.items() if k not in newer}, strict=False)
    vae = build_vae(settings)
    assert vae.decodes_codes and vae.quantizer.codebook_size == 16
    tensors = {name for name in vae.state_dict() if name.startswith("quantizer")}
    assert tensors == {f"quantizer._codebook.{name}" for name in ("initted", "cluster_size", "embed_avg", "embed")}


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["vae.quantizer=vq"], r"vae.quantizer should be 'codebook', 'fsq' or 'residual'"),
        (["vae.fsq.levels=6"], r"vae.fsq.levels \(6\) must be odd"),
        (["vae.quantizer=fsq", "vae.fsq.start=6"], r"vae.fsq.start \(6\) must be below vae.steps"),
        (["vae.quantizer=fsq", "vae.latent_channels=23"], r"more codes than 64 bits can count"),
        (["vae.quantizer=residual", "vae.residual.quantizers=7"], r"quantizers \(7\) are more codes than 64 bits"),
    ],
)
def test_quantisers_that_cannot_be_are_one_line_with_the_key(overrides, fault):
    with pytest.raises(UserError, match=fault):
        context_with(*overrides)


def test_finite_scalars_quantise_from_their_start_on(monkeypatch, tmp_path):
    """Before the start the decoder gets the latents unchanged, afterwards whole numbers."""
    task = a_task(monkeypatch, noise_pictures(tmp_path), "vae.quantizer=fsq", "vae.fsq.start=1")
    seen = []
    task.network.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    for step in range(2):
        task.step(step, Draws(0, "vae", step, 4, DEVICE))
    whole = [bool((given == given.round()).all()) for given in seen]
    assert whole == [False, True]


@pytest.mark.parametrize("size", [32, 128])
def test_windows_cells_and_labels_follow_the_size_of_the_pictures(monkeypatch, tmp_path, size):
    dataset = placed_pictures(tmp_path)
    images = torch.nn.functional.interpolate(dataset.images.float(), size=(size, size)).to(torch.uint8)
    changes = (f"data.size={size}", "vae.cell_weight=1.0", "vae.windows_until=1", "vae.foreground=1.0")
    task = a_task(monkeypatch, replace(dataset, images=images), *changes, "vae.codebook.start=4")
    seen = []
    monkeypatch.setattr(task.network, "latents", lambda x, of=task.network.latents: seen.append(x.shape[-1]) or of(x))
    for step in (0, 1):
        metrics = task.step(step, Draws(0, "vae", step, 4, DEVICE))
        assert all(torch.as_tensor(value).isfinite().all() for value in metrics.values())
    assert seen == [size // 2, size]
