"""Float32 products are exact while the library works, however the process set torch, and its settings come back."""

import pytest
import torch

from stages.use.exact import GENERAL, PRODUCTS, exact_float32

B = torch.backends


def older():
    """What torch's older settings say; None for one that torch refuses to read."""
    found = []
    for read in (torch.get_float32_matmul_precision, lambda: B.cudnn.allow_tf32, lambda: B.cuda.matmul.allow_tf32):
        try:
            found.append(read())
        except RuntimeError:
            found.append(None)
    return found


def newer():
    return [part.fp32_precision for part in (*GENERAL, *PRODUCTS)]


@pytest.fixture(autouse=True)
def as_torch_starts():
    def reset():
        torch.set_float32_matmul_precision("highest")
        B.cudnn.allow_tf32 = True
        for part, value in zip((*GENERAL, *PRODUCTS), ["none"] * 3 + ["tf32"] * 2 + ["none"] * 2, strict=True):
            part.fp32_precision = value

    reset()
    yield
    reset()


def set_parts(*parts, to="tf32"):
    for part in parts:
        part.fp32_precision = to


@pytest.mark.parametrize(
    "choose",
    [
        lambda: None,
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: set_parts(B.cuda.matmul),
        lambda: set_parts(B.cuda.matmul, B.cudnn.rnn),
        lambda: set_parts(B.cudnn.rnn, to="ieee"),
        lambda: set_parts(B),
        lambda: set_parts(B.mkldnn.matmul, to="bf16"),
        lambda: (torch.set_float32_matmul_precision("high"), set_parts(B.cuda.matmul, to="ieee")),
    ],
)
def test_products_are_exact_within_and_every_setting_comes_back(choose):
    choose()
    before = older(), newer()
    with exact_float32():
        assert {part.fp32_precision for part in PRODUCTS} == {"ieee"}
        within = older()
    assert (older(), newer()) == before
    for was, now, exact in zip(before[0], within, ["highest", False, False], strict=True):
        assert now == exact or was is None  # a reader of the older settings is told no less


def test_a_product_that_takes_the_general_setting_takes_it_after():
    set_parts(B.cudnn.conv, to="none")
    set_parts(B)
    with exact_float32():
        pass
    set_parts(B, to="ieee")
    assert B.cudnn.conv.fp32_precision == "ieee" and B.cudnn.rnn.fp32_precision == "tf32"


def test_the_settings_come_back_after_an_error():
    before = newer()
    with pytest.raises(KeyError), exact_float32():
        raise KeyError
    assert newer() == before
