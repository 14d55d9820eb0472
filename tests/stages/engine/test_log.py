import json

import pytest
import torch

from stages.engine.log import MetricsLog, _clock, progress, read_metrics
from stages.engine.sums import Sums


def test_a_metric_that_begins_within_an_interval_is_the_mean_of_its_own_steps(tmp_path):
    log = MetricsLog(tmp_path, every=4, steps=4, batch=1, title="x")
    log.begin(0)
    for step in range(4):
        late = {"late": torch.tensor(8.0)} if step == 3 else {}
        log.add({"loss": torch.tensor(float(step)), **late})
    log.flush(4)
    log.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (line["loss"], line["late"]) == (1.5, 8.0)


def test_a_sum_of_some_pictures_is_divided_by_how_many_they_were_also_after_a_resume(tmp_path):
    log = MetricsLog(tmp_path, every=2, steps=2, batch=1, title="x")
    log.begin(0)
    log.add({"part": (torch.tensor(6.0), torch.tensor(3)), "never": (torch.tensor(0.0), torch.tensor(0))})
    again = MetricsLog(tmp_path, every=2, steps=2, batch=1, title="x")
    again.load_state_dict(log.state_dict(), torch.device("cpu"))
    log.close()
    again.begin(1)
    again.add({"part": (torch.tensor(4.0), torch.tensor(1)), "never": (torch.tensor(0.0), torch.tensor(0))})
    again.flush(2)
    again.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["part"] == 2.5 and "never" not in line


def test_lines_that_are_no_metrics_are_passed_over(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        "5\n[]\nnull\n" + "[" * 100_000 + '\n{"step": 1, "loss": 2.0}\n{"step": 2, "lo'
    )
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]
    log = MetricsLog(tmp_path, every=2, steps=2, batch=1, title="x")
    log.begin(1)
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'


def test_sums_are_by_name_though_a_step_brings_a_name_or_leaves_one_out():
    sums = Sums()
    for values in ({"a": 1.0}, {"b": 2.0}, {}, {"b": 3.0, "a": 4.0}):
        sums.add({name: torch.tensor(value) for name, value in values.items()})
    assert {name: total.item() for name, total in sums.by_name().items()} == {"a": 5, "b": 5}


def test_a_long_loop_says_each_quarter_where_no_terminal_is(capsys):
    said = []
    for _ in progress(range(8), "packing"):
        said.append(capsys.readouterr().err)
    quarters = {0: "packing ...\n", 2: "packing: 25 %\n", 4: "packing: 50 %\n", 6: "packing: 75 %\n"}
    assert said == [quarters.get(done, "") for done in range(8)]


@pytest.mark.parametrize(
    ("total", "parts"),
    [(0, []), (1, [100]), (2, [50, 100]), (3, [33, 66, 100]), (6, [33, 50, 83]), (6003, [25, 50, 75])],
)
def test_a_loop_says_no_more_than_is_done(capsys, total, parts):
    for _ in progress(range(total), "packing"):
        pass
    assert capsys.readouterr().err == "packing ...\n" + "".join(f"packing: {part} %\n" for part in parts)


@pytest.mark.parametrize(
    ("seconds", "words"), [(9.9, "0:09"), (3599, "59:59"), (3600, "1:00:00"), (100 * 3600 + 65, "100:01:05")]
)
def test_the_time_that_is_left_in_hours_minutes_and_seconds(seconds, words):
    assert _clock(seconds) == words
