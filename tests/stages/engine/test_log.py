import json

import torch

from stages.engine.log import MetricsLog, read_metrics


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
