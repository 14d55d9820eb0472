import json

import torch

from stages.engine.log import MetricsLog


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
