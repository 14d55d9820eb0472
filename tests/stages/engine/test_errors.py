"""What the system or a library refuses is told apart, and said in one line with its fix."""

import errno
import os

import pytest
import torch

from stages.engine.errors import is_out_of_memory, of_the_system, oneline


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"), True),
        (RuntimeError("unable to mmap 9 bytes: Cannot allocate memory (12)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_memory_that_ran_out_is_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) == expected


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.ENOSPC, "free space, or choose another place with root=DIR"),
        (errno.EACCES, "fix its permissions, or choose another place with root=DIR"),
        (errno.EIO, "fix this and run again"),
    ],
)
def test_what_the_system_refuses_says_where_why_and_what_to_do(number, fix):
    error = OSError(number, os.strerror(number), "runs/x")
    assert str(of_the_system(error)) == f"runs/x: {os.strerror(number)}; {fix}"
    assert str(of_the_system(error, "cannot read y")) == f"cannot read y: {os.strerror(number)}; {fix}"


def test_an_error_without_words_is_called_by_its_type():
    assert (oneline(KeyError()), oneline(ValueError("\n first\nsecond"))) == ("KeyError", "first")
