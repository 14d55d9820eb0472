import pytest
import torch

from data.joined import Joined

WHOLE = torch.arange(60).view(20, 3)
PARTS = [WHOLE[:7], WHOLE[7:7], WHOLE[7:8], WHOLE[8:]]


@pytest.mark.parametrize("rows", [None, torch.tensor([19, 0, 7, 8, 6, 3], dtype=torch.int32)])
def test_parts_read_like_the_whole(rows):
    joined, whole = Joined(PARTS, rows), WHOLE if rows is None else WHOLE[rows.long()]
    assert (len(joined), joined.shape, joined.dtype, joined.nbytes) == (
        len(whole),
        whole.shape,
        whole.dtype,
        whole.nbytes,
    )
    for chosen in (
        torch.tensor([5, 0, 5, -1]),
        torch.tensor([], dtype=torch.int64),
        slice(2, 5),
        slice(None),
        slice(3, 1),
    ):
        assert torch.equal(joined[chosen], whole[chosen]), chosen
    assert torch.equal(torch.cat([*joined.split(4)]), whole)
    assert torch.equal(joined.to(torch.device("cpu")), whole)
    with pytest.raises(IndexError):
        joined[torch.tensor([len(whole)])]


def test_a_slice_within_one_part_is_a_view():
    joined = Joined(PARTS)
    assert joined[8:20].data_ptr() == PARTS[3].data_ptr()
    assert joined[6:9].data_ptr() != PARTS[0][6:].data_ptr()


def test_many_rows_are_copied_to_their_places():
    whole = torch.arange(10_000).view(5000, 2)
    assert torch.equal(Joined([whole[:3000], whole[3000:]]).to(torch.device("cpu")), whole)
