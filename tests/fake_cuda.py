"""A GPU without a GPU: device tensors have shapes, dtypes and a device but no numbers; the host's are real.

torch's FakeTensorMode checks each operation's shapes, types and devices. It runs no kernel, so it knows nothing of
time, of values, or of memory layouts that a kernel chooses. A question to the device is answered by `says` or zeros.
"""

import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

CUDA = torch.device("cuda:0")
HERE = Path(__file__).resolve().parent.parent
aten = torch.ops.aten
ASKS = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)  # the host needs a number from the device
COPIES = (aten._to_copy.default, aten.copy_.default)
# kernels that refuse operands of two floating types, which FakeTensorMode lets pass
ONE_TYPE = (
    *(aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.convolution.default),
    *(
        aten.index_add_.default,
        aten.scatter_.src,
        aten.scatter_add_.default,
        aten.lerp_.Scalar,
        aten.index_copy_.default,
    ),
    aten._scaled_dot_product_attention_math.default,
)


def _is_fake(value: object) -> bool:
    return isinstance(value, FakeTensor)


def _place() -> str:
    """Returns the innermost line of this repository outside tests/ that is being run."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(HERE) and not path.is_relative_to(HERE / "tests") and ".venv" not in path.parts:
            return f"{path.relative_to(HERE)}:{frame.lineno}"
    return "?"


class FakeCuda(TorchDispatchMode):
    """Runs what is on the host for real and fakes what is on `CUDA`; keeps in `waits` what the host waited for.

    Waits are: values of device tensors (`.item()`, `bool()`), shapes that depend on values (`nonzero`, `bincount`,
    indexing by a mask), copies to the host, and copies to the device that are blocking or from memory that is not
    pinned.
    """

    def __init__(self):
        super().__init__()
        self.waits: list[str] = []
        self.types: dict[object, set[torch.dtype]] = {}  # of what they are given
        self.calls: Counter = Counter()  # operations on the device that are more than a view
        self.sent = 0  # copies from the host that it did not wait for
        self.says = True  # the answer to a question to the device
        self._pinned: dict[int, Tensor] = {}  # by address, kept alive so that none is used twice

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.prim.device.default:  # of most calls: quickly
            return args[0].fake_device if _is_fake(args[0]) else args[0].device
        kwargs = kwargs or {}
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        target = kwargs.get("device")
        on_device = any(map(_is_fake, tensors)) or (target is not None and torch.device(target).type == "cuda")
        if not on_device:
            return self._on_host(function, args, kwargs)
        if not function.is_view:
            self.calls[function] += 1
            self.types.setdefault(function, set()).update(x.dtype for x in tensors)
        if function in ONE_TYPE:
            types = {x.dtype for x in tensors if x.is_floating_point()}
            assert len(types) < 2, f"{_place()}: {function} of {types}"
        if function in COPIES:
            return self._copy(function, args, kwargs)
        if function in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            args = self._index(function, args)
        elif any(tag in function.tags for tag in ASKS):
            return self._answer(function, args, kwargs)
        elif function is aten.where.self and any(not _is_fake(x) for x in tensors):
            self._wait(function)  # a number in a tensor of the host is copied first
        return function(*args, **kwargs)

    def _wait(self, function) -> None:
        self.waits.append(f"{_place()} {function.__name__.removesuffix('.default')}")

    def _on_host(self, function, args, kwargs):
        with _disable_current_modes():
            if function is aten.is_pinned.default:
                return args[0].untyped_storage().data_ptr() in self._pinned
            if function is aten._pin_memory.default:
                copy = args[0].clone()
                self._pinned[copy.untyped_storage().data_ptr()] = copy
                return copy
            return function(*args, **kwargs)

    def _copy(self, function, args, kwargs):
        source = args[1] if function is aten.copy_.default else args[0]
        goal = args[0].device if function is aten.copy_.default else torch.device(kwargs.get("device") or source.device)
        if source.device.type == "cuda" and goal.type == "cpu":
            self._wait(function)
            with _disable_current_modes():  # zeros: nothing is known of the values
                dtype = kwargs.get("dtype") or source.dtype
                return args[0].zero_() if function is aten.copy_.default else torch.zeros(source.shape, dtype=dtype)
        if source.device.type == "cpu":
            flag = kwargs.get("non_blocking", args[2] if function is aten.copy_.default and len(args) > 2 else False)
            if not (flag and source.untyped_storage().data_ptr() in self._pinned):
                self._wait(function)
            else:
                self.sent += 1
        return function(*args, **kwargs)

    def _index(self, function, args):
        found = []
        for index in args[1]:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                self._wait(function)
                if function is aten.index.Tensor:  # as if all were chosen
                    found += [torch.empty(index.numel(), dtype=torch.int64, device=CUDA) for _ in range(index.ndim)]
                    continue
            elif index is not None and not _is_fake(index):
                self._wait(function)  # copied to the device first
            found.append(index)
        if len(args) > 2 and not _is_fake(args[2]):
            self._wait(function)  # a value of the host
        return (args[0], found, *args[2:])

    def _answer(self, function, args, kwargs):
        self._wait(function)
        of = args[0]
        if function is aten._local_scalar_dense.default:
            return self.says if of.dtype == torch.bool else (float if of.is_floating_point() else int)(self.says)
        if function is aten.equal.default:
            return True
        if function is aten.nonzero.default:
            return torch.empty(of.numel(), of.ndim, dtype=torch.int64, device=CUDA)
        if function is aten.bincount.default:
            least = kwargs.get("minlength", args[2] if len(args) > 2 else 0)
            return torch.empty(max(1, least), dtype=torch.int64, device=CUDA)
        raise NotImplementedError(f"{function} has no answer yet")


def _backward(loss: Tensor, *unused, inputs: list[Tensor], **options: object) -> None:
    """Stands for the backward pass, which torch cannot fake on a machine without the device's driver."""
    assert loss.requires_grad
    assert loss.ndim == 0
    for parameter in inputs:
        parameter.grad = torch.empty_like(parameter)


def _gradients(outputs, inputs, *unused, **options: object) -> tuple[Tensor, ...]:
    inputs = [inputs] if isinstance(inputs, Tensor) else inputs
    assert all(x.requires_grad for x in inputs)
    return tuple(torch.empty_like(x).requires_grad_(bool(options.get("create_graph"))) for x in inputs)


def _applied(self: nn.Module, function, recurse: bool = True) -> nn.Module:
    """Replaces a module's tensors, as torch does with tensors of its own; those of FakeTensorMode it would swap."""
    for child in self.children():
        _applied(child, function)
    for name, parameter in self._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                self._parameters[name] = nn.Parameter(function(parameter), parameter.requires_grad)
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = function(buffer)
    return self


@contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """Lets torch believe in a device `CUDA`."""
    generator = torch.Generator
    fake = FakeTensorMode(allow_non_fake_inputs=True)  # imports much that reads torch.Generator: before it is replaced
    with (
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        mock.patch("torch.cuda.is_bf16_supported", lambda *unused, **options: True),
        mock.patch.object(torch, "Generator", lambda device=None: generator()),
        mock.patch.object(Tensor, "backward", _backward),
        mock.patch.object(torch.autograd, "grad", _gradients),
        mock.patch.object(nn.Module, "_apply", _applied),
        warnings.catch_warnings(action="ignore"),
        fake,
        FakeCuda() as machine,
    ):
        yield machine
