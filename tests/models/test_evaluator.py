import torch

from models.evaluator import Evaluator, accuracy, top_k_hits


def fact_sheet_rule(scores, labels):
    """Scores by the fact sheet's rule, one picture at a time.

    Take the k highest outputs, k the number of its labels; count those that are labels; divide the sum over pictures by
    the sum of k.
    """
    hits = total = 0
    for row, truth in zip(scores.tolist(), labels.tolist(), strict=True):
        k = int(sum(truth))
        best = sorted(range(len(row)), key=lambda i: -row[i])[:k]
        hits += sum(truth[i] for i in best)
        total += k
    return hits / total


def test_accuracy_is_the_fact_sheets_rule_on_random_inputs():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        scores = torch.rand(20, 24, generator=generator)
        labels = torch.zeros(20, 24)
        for row in labels:
            count = int(torch.randint(1, 6, (), generator=generator))
            row[torch.randperm(24, generator=generator)[:count]] = 1
        assert abs(accuracy(scores, labels) - fact_sheet_rule(scores, labels)) < 1e-6


def test_hits_by_hand():
    scores = torch.tensor([[0.9, 0.8, 0.1, 0.2], [0.1, 0.2, 0.3, 0.4]])
    labels = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    assert top_k_hits(scores, labels).tolist() == [1, 1]


def test_features_feed_the_head():
    network = Evaluator().eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(network(images), network.resnet18(images))
    assert network.features(images).shape == (2, 512)
