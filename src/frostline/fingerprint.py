"""Names for content: equal names mean equal bytes, whatever the file, the order or the memory layout."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_BYTES = 16


def of_bytes(content: bytes | bytearray | memoryview) -> str:
    """Name these bytes.

    Args:
        content: Anything that is bytes already.

    Returns:
        32 hexadecimal digits.

    Example:
        >>> of_bytes(b"ice") == of_bytes(bytearray(b"ice"))
        True
    """
    return hashlib.sha256(content).hexdigest()[: 2 * _BYTES]


def of_file(path: Path | str) -> str:
    """Name the content of a file; the file's own name plays no part.

    Args:
        path: A file that can be read.

    Returns:
        32 hexadecimal digits, the same as `of_bytes` of its content.

    Example:
        >>> of_file(__file__) == of_bytes(Path(__file__).read_bytes())
        True
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[: 2 * _BYTES]


def of_text(*parts: str) -> str:
    """Name a sequence of texts; where one ends and the next begins counts.

    Args:
        parts: Any number of texts.

    Returns:
        32 hexadecimal digits.

    Example:
        >>> of_text("ab", "c") == of_text("a", "bc")
        False
    """
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogateescape")
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()[: 2 * _BYTES]


def of_tensors(tensors: Iterable[tuple[str, "Tensor"]]) -> str:
    """Name a set of named tensors by their names, types, shapes and bits.

    Neither the order of the pairs nor a tensor's memory layout or device plays a part.

    Args:
        tensors: Pairs such as `model.state_dict().items()`.

    Returns:
        32 hexadecimal digits.

    Example:
        >>> import torch
        >>> x = torch.rand(2, 3)
        >>> of_tensors([("x", x)]) == of_tensors([("x", x.t().contiguous().t())])
        True
    """
    lines = sorted((name, str(tensor.dtype), str(tuple(tensor.shape)), _of_tensor(tensor)) for name, tensor in tensors)
    return of_text(*(word for line in lines for word in line))


def same_bits(one: "Tensor", other: "Tensor") -> bool:
    """Whether two tensors have one shape, one type and the same bits.

    `torch.equal` takes -0 for 0 and holds NaN unequal to itself.

    Example:
        >>> import torch
        >>> same_bits(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
        True
    """
    import torch

    return (one.shape, one.dtype) == (other.shape, other.dtype) and torch.equal(_bits(one), _bits(other))


def _of_tensor(tensor: "Tensor") -> str:
    return of_bytes(_bits(tensor).numpy().data)


def _bits(tensor: "Tensor") -> "Tensor":
    import torch

    # `reshape` on top of `contiguous`: a tensor without axes has no last one to view as bytes.
    return tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8)
