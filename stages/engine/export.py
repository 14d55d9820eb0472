"""Exports are safetensors files for the next stage, with a JSON header that says what they were made from."""

import hashlib
import json
import mmap
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data.sizes import SIZE
from stages.engine.errors import UserError, of_the_system, oneline
from stages.engine.files import from_json, write_atomically

DTYPES = {  # safetensors' names for the types that exports hold
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def _bytes_of(tensor: Tensor) -> memoryview:
    """Returns a contiguous CPU tensor's memory without a copy: a pack may be as large as memory."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


KINDS: dict[str, type | tuple[type, ...]] = {  # of what a description says, where it says it
    **dict.fromkeys(("identity", "parents", "config", "teacher"), dict),
    **dict.fromkeys(("classes", "inputs", "latent_channels", "most", "size", "steps"), int),
    "objects": list,
    "seconds": (int, float),
}


@dataclass(frozen=True)
class Computed:
    """A tensor that is only hashed, as if it were stored: `parts()` yields its rows in order."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: Callable[[], Iterator[Tensor]]


def sha256_of(tensors: Mapping[str, Tensor | Computed]) -> str:
    """Returns the digest of tensors' names, types, shapes and content, which identifies an export."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        for part in tensor.parts() if isinstance(tensor, Computed) else [tensor]:
            digest.update(_bytes_of(part.detach().cpu().contiguous()))
    return digest.hexdigest()


def safetensors_header(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> tuple[bytes, list[str]]:
    """Returns a safetensors file's header and the order of its tensors, without needing their content.

    Wider types come first, so that all are aligned.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        shape = list(tensors[name].shape)
        header[name] = {"dtype": DTYPES[tensors[name].dtype], "shape": shape, "data_offsets": [begin, end]}
    words = json.dumps(header).encode()
    words += b" " * (-len(words) % 8)
    return len(words).to_bytes(8, "little") + words, names


def _safetensors(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Iterator[bytes | memoryview]:
    """Yields the parts of a safetensors file. The library would first copy all tensors into one string."""
    header, names = safetensors_header(tensors, metadata)
    yield header
    for name in names:
        yield _bytes_of(tensors[name])


def save_export(path: Path, tensors: dict[str, Tensor], about: dict) -> str:
    """Writes tensors and a JSON-able `about`. Returns their sha256, which is also written into the header."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digest = sha256_of(tensors)
    write_atomically(path, *_safetensors(tensors, described(about, digest)))
    return digest


def described(about: dict, digest: str) -> dict[str, str]:
    """Returns the metadata in an export's header."""
    words = json.dumps(about, sort_keys=True)
    return {"about": words, "about_sha256": hashlib.sha256(words.encode()).hexdigest(), "sha256": digest}


def read_about(path: Path, remedy: str) -> dict:
    """Returns an export's `about` with its `sha256`, without reading the tensors. `remedy` ends its error message."""
    if not path.is_file():
        raise UserError(f"{path} is missing: {remedy}")
    try:
        path.open("rb").close()
    except OSError as error:  # safetensors reports every refusal as a missing file
        raise of_the_system(error, f"cannot read {path}") from None
    try:
        with safe_open(path, framework="np") as file:  # torch's would reserve memory for the whole file
            header = file.metadata() or {}
        words = hashlib.sha256(header["about"].encode()).hexdigest()
        if header.get("about_sha256", words) != words:
            raise ValueError("checksum of its description differs")
        about = {**from_json(header["about"]), "sha256": header["sha256"]}
        if wrong := [key for key, kind in KINDS.items() if key in about and not isinstance(about[key], kind)]:
            raise ValueError(f"its {wrong[0]} is {about[wrong[0]]!r:.40}")
        return about
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({oneline(error)}): move it aside, then {remedy}") from None


def refuse_other_size(path: Path, about: dict, size: int) -> None:
    """Raises UserError if an export is of pictures of another size. `about`: its description; `size`: data.size."""
    made = about.get("size", SIZE)
    if made != size:
        raise UserError(
            f"{path} is of {made}x{made} pictures, but data.size is {size}; set data.size={made}, or train it again "
            f"under another name"
        )


@contextmanager
def of_this_version(path: Path, remedy: str) -> Iterator[None]:
    """Context manager that reports an export that does not fit this version's networks as a UserError."""
    try:
        yield
    except (ValidationError, ArithmeticError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} was made by another version of this project ({oneline(error)[:80]}); make it again with {remedy}"
        ) from None


def _mapped(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file as read-only views of the file: only used parts take memory.

    The library's views are writable, so that the system reserves memory for all of them, or refuses.
    """
    with open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    tensors, types = {}, {name: kind for kind, name in DTYPES.items()}
    for name, found in header.items():
        if name != "__metadata__":
            first, last = (start + place for place in found["data_offsets"])
            with warnings.catch_warnings(action="ignore"):  # torch warns that it is read-only
                flat = torch.frombuffer(memory, dtype=torch.uint8, count=last - first, offset=first)
            tensors[name] = flat.view(types[found["dtype"]]).view(found["shape"])
    return tensors


def load_export(path: Path, remedy: str, mapped: bool = False, check: bool = True) -> tuple[dict[str, Tensor], dict]:
    """Loads an export's tensors on the CPU and its `about`, and verifies the checksum in the header.

    `mapped`: the tensors stay in the file and may be larger than memory. Without `check` only the header is verified.
    """
    about = read_about(path, remedy)
    try:
        if mapped:
            tensors = _mapped(path)
        else:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged ({oneline(error)}): move it aside, then {remedy}") from None
    if check and sha256_of(tensors) != about["sha256"]:
        raise UserError(f"{path} is damaged (checksum differs): move it aside, then {remedy}")
    return tensors, about
