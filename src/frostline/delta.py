"""The tensors that differ from the base network, kept in one safetensors file.

The file says which frozen tensors it must be laid upon: each has its digest in the header, so a
wrong base is refused and the tensor that differs is named.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from frostline import fingerprint
from frostline.copies import copy_of
from frostline.errors import DeltaMismatch, NewerSchema
from frostline.files import write_whole
from frostline.records import Delta

_HEADER = "frostline.delta"
"""One entry of the safetensors header holds all: several would be written in a random order."""


def save_delta(
    base: nn.Module, tuned: nn.Module, file: Path | str, *, keys: Collection[str] | None = None, depth: int = 0
) -> Delta:
    """Write the tensors of `tuned` that make it differ from `base`, whole or not at all.

    Tensors that share one storage are written once. Neither network is changed.

    Args:
        base: The network before tuning.
        tuned: A network of the same class; only tensors that go into the delta may differ.
        file: Replaced if it exists.
        keys: State-dict keys to write, such as those of the live part; None takes those whose
            bits differ.
        depth: Number of frozen stages, for the record.

    Returns:
        What was written, and the digest of the frozen tensors that it belongs upon.

    Raises:
        DeltaMismatch: The networks differ in names, shapes or types, or in a tensor outside `keys`.
        DiskFull: The disk filled up; what was at `file` before is untouched.

    Example:
        >>> import copy, tempfile
        >>> base = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> tuned = copy.deepcopy(base)
        >>> _ = tuned[1].bias.data.add_(1)
        >>> save_delta(base, tuned, Path(tempfile.mkdtemp()) / "delta.safetensors", depth=1).keys
        ('1.bias',)
    """
    file = Path(file)
    before, after = dict(_tensors(base)), dict(_tensors(tuned))
    _agree(before, after, of="the tuned network", other="the base")
    changed = {key for key in after if not fingerprint.same_bits(before[key], after[key])}
    wanted = _with_aliases(changed if keys is None else set(keys), after)
    if unknown := wanted - set(after):
        raise DeltaMismatch(
            f"DeltaMismatch: {_few(unknown)} should be written, but the network has no such tensor. "
            f"Give keys of its state_dict(), for instance {_few(list(after)[:3])}.",
            keys=tuple(sorted(unknown)),
        )
    if left_out := changed - wanted:
        raise DeltaMismatch(
            f"DeltaMismatch: {_few(left_out)} differ between the networks, but are not among the keys to write, so "
            "the tuned network could not be rebuilt. A frozen tensor moved, or keys are missing.",
            keys=tuple(sorted(left_out)),
        )
    if torn := _untied(before, after):
        raise DeltaMismatch(
            f"DeltaMismatch: {_few(torn)} are one tensor in the base and have different values in the tuned network, "
            "which the base's class cannot hold. Tie them again before saving.",
            keys=tuple(sorted(torn)),
        )
    written, aliases = _once_each(wanted, after)
    frozen = {key: _digest(key, tensor) for key, tensor in before.items() if key not in wanted}
    header = {
        "schema": Delta.version,
        "depth": depth,
        "base": _digest_of(frozen),
        "aliases": aliases,
        "frozen": frozen,
    }
    content = save(written, metadata={_HEADER: json.dumps(header, sort_keys=True)})
    write_whole(file, content)
    return Delta(file=str(file), depth=depth, base=header["base"], keys=tuple(sorted(wanted)), bytes=len(content))


def apply_delta(base: nn.Module, file: Path | str) -> nn.Module:
    """Lay a delta upon a copy of the base network.

    Args:
        base: A network of the class and with the frozen tensors that the delta was made for;
            its other tensors (a new head, for instance) may hold anything. It is not changed.
        file: Written by `save_delta`.

    Returns:
        A network of the base's own class, modes and hooks, equal bit for bit to the tuned one.

    Raises:
        DeltaMismatch: The file is no delta, or belongs upon another network; says what differs.
        NewerSchema: A later version of frostline wrote it.

    Example:
        >>> import copy, tempfile
        >>> base = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> tuned = copy.deepcopy(base)
        >>> _ = tuned[1].bias.data.add_(1)
        >>> delta = save_delta(base, tuned, Path(tempfile.mkdtemp()) / "delta.safetensors", depth=1)
        >>> torch.equal(apply_delta(base, delta.file)[1].bias, tuned[1].bias)
        True
    """
    file = Path(file)
    header, written = _read(file)
    laid = written | {alias: written[key] for alias, key in header["aliases"].items()}
    there = dict(_tensors(base))
    frozen: dict[str, str] = header["frozen"]
    if missing := (set(laid) | set(frozen)) - set(there):
        _refuse(file, f"{_few(missing)} are in the delta's network and not in this one", missing)
    if extra := set(there) - set(laid) - set(frozen):
        _refuse(file, f"{_few(extra)} are in this network and not in the delta's", extra)
    _agree({key: there[key] for key in laid}, laid, of=f"the delta {file}", other="this network")
    if wrong := [key for key, digest in frozen.items() if _digest(key, there[key]) != digest]:
        of = f"{len(wrong)} of {len(frozen)} frozen tensors"
        _refuse(file, f"{of} of this network differ from those it was tuned on: {_few(wrong)}", wrong)
    merged = copy_of(base)
    # Updated in place, since a state dict also carries the versions that modules look at on loading.
    state = merged.state_dict()
    state.update(laid)
    merged.load_state_dict(state)
    _forget_cached(merged)
    return merged


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a state dict holds, less extra state that is no tensor and belongs to the base."""
    for key, value in model.state_dict().items():
        if isinstance(value, Tensor):
            yield key, value.detach()


def _agree(before: Mapping[str, Tensor], after: Mapping[str, Tensor], *, of: str, other: str) -> None:
    if set(before) != set(after):
        differing = set(before) ^ set(after)
        raise DeltaMismatch(
            f"DeltaMismatch: {_few(differing)} are in only one of {of} and {other}. Both must be of one class, built "
            "with the same arguments.",
            keys=tuple(sorted(differing)),
        )
    for key, tensor in after.items():
        found, needed = (f"{tuple(each.shape)} {each.dtype}" for each in (tensor, before[key]))
        if found != needed:
            raise DeltaMismatch(
                f"DeltaMismatch: {key!r} is {found} in {of} and {needed} in {other}. Build both with the same "
                "arguments, the same number of outputs included.",
                keys=(key,),
            )


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for two keys that are one tensor: storage and layout, never the values."""
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def _with_aliases(keys: Iterable[str], tensors: Mapping[str, Tensor]) -> set[str]:
    wanted = set(keys)
    places = {_place(tensors[key]) for key in wanted if key in tensors and tensors[key].numel()}
    return wanted | {key for key, tensor in tensors.items() if tensor.numel() and _place(tensor) in places}


def _untied(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    first: dict[tuple[Any, ...], str] = {}
    torn: set[str] = set()
    for key, tensor in before.items():
        name = first.setdefault(_place(tensor), key) if tensor.numel() else key
        if name != key and not fingerprint.same_bits(after[name], after[key]):
            torn |= {name, key}
    return torn


def _once_each(keys: set[str], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Plain contiguous copies of the tensors, and for each further name of one its first name."""
    written: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for key in sorted(keys):
        tensor = tensors[key]
        if tensor.numel() and (name := first.setdefault(_place(tensor), key)) != key:
            aliases[key] = name
        else:
            # A clone, since views that overlap in part share a storage, which safetensors refuses.
            written[key] = tensor.resolve_conj().resolve_neg().cpu().clone(memory_format=torch.contiguous_format)
    return written, aliases


def _digest(key: str, tensor: Tensor) -> str:
    return fingerprint.of_tensors([(key, tensor)])


def _digest_of(frozen: Mapping[str, str]) -> str:
    return fingerprint.of_text(*(word for pair in sorted(frozen.items()) for word in pair))


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as content:
            header = json.loads((content.metadata() or {})[_HEADER])
            if header["schema"] > Delta.version:
                raise NewerSchema(
                    f"NewerSchema: {file} is a delta of schema {header['schema']}; this version of frostline reads up "
                    f"to {Delta.version}. Install a later version: pip install --upgrade frostline.",
                    path=str(file),
                    schema=header["schema"],
                    newest=Delta.version,
                )
            return header, {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, NewerSchema):
            raise
        reason = "it has no header of ours" if isinstance(error, KeyError) else str(error)
        raise DeltaMismatch(
            f"DeltaMismatch: {file} is not a delta that can be read: {reason}. Give a file written by `save_delta`, "
            "such as delta.safetensors of a run folder.",
            path=str(file),
            keys=(),
        ) from error


def _refuse(file: Path, found: str, keys: Collection[str]) -> None:
    raise DeltaMismatch(
        f"DeltaMismatch: {file} belongs upon another network: {found}. Build the network as it was built for the run: "
        "the same class, arguments and pretrained weights.",
        path=str(file),
        keys=tuple(sorted(keys)),
    )


def _few(keys: Collection[str], most: int = 3) -> str:
    shown = sorted(keys)
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(map(repr, shown[:most])) + more


def _forget_cached(model: nn.Module) -> None:
    """Make modules drop what they computed from the old weights: those that cache do so on `train()`."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    for module, mode in modes:
        module.training = mode
