"""One forward pass under watch: when each storage is made and read, when each module is called."""

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from frostline import fingerprint
from frostline.copies import full_precision, plain_torch
from frostline.recording import Call, Inputs, Layout, Read, Size, Storage
from frostline.trees import leaves, rebuild, tensors

# Operations by which Python, or the shape of what follows, comes to depend on a value.
_ASKING = {"_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim"}
# Operations that look at the shape of their argument and not at its values.
_SHAPE_ONLY = {
    *("new_empty", "new_empty_strided", "new_zeros", "new_ones", "new_full", "empty_like", "zeros_like", "ones_like"),
    *("full_like", "rand_like", "randn_like"),
}


@dataclasses.dataclass(frozen=True)
class Operation:
    """One tensor operation: its name, the numbers among its arguments, and what it computed."""

    moment: int
    name: str
    scalars: tuple[Any, ...]
    flops: int


@dataclasses.dataclass
class Pass:
    """What was seen.

    `reads` holds the moments by storage of a parameter or buffer, `owned` that storage by name,
    and `weights` those that carry what was learnt; `asked` holds when Python looked at a value of
    the sample, and the entry of the call that was running.
    """

    calls: list[Call]
    storages: dict[int, Storage]
    reads: dict[int, list[int]]
    operations: list[Operation]
    asked: list[tuple[int, int]]
    inputs: Inputs
    owned: dict[str, int]
    weights: set[int]
    output: tuple[Layout | None, ...]
    output_storages: tuple[int | None, ...]


def watch(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], names: tuple[str, ...]) -> Pass:
    """Run the network once and write down what happened.

    Args:
        model: A copy that may be hooked, in the mode to watch.
        args: Positional arguments.
        kwargs: Named arguments.
        names: One for each tensor among them.
    """
    mode = _Watch()
    owned = {
        name: key
        for name, tensor in [
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        ]
        if (key := mode.key(tensor)) is not None
    }
    mode.reads = {key: [] for key in owned.values()}
    mode.weights = {key for tensor in model.parameters() if (key := mode.key(tensor)) is not None}
    given = leaves((args, kwargs))
    for tensor in tensors(given):
        mode.meet(tensor, is_data=tensor.is_floating_point() or tensor.is_complex(), of_sample=True)
    inputs = Inputs(
        tree=rebuild((args, kwargs), iter(range(len(given)))),
        leaves=tuple(_described(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in given),
        names=names,
        storages=tuple(key for tensor in tensors(given) if (key := mode.key(tensor)) is not None),
    )
    mode.settle()
    calls, handles = _hooked(model, mode)
    try:
        with torch.no_grad(), plain_torch(), full_precision(), mode:
            output = model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    mode.finish(tensors(output))
    return Pass(
        calls=calls,
        storages=mode.storages,
        reads=mode.reads,
        operations=mode.operations,
        asked=mode.asked,
        inputs=inputs,
        owned=owned,
        weights=mode.weights,
        output=tuple(_described(leaf) if isinstance(leaf, torch.Tensor) else None for leaf in leaves(output)),
        output_storages=tuple(mode.key(leaf) if isinstance(leaf, torch.Tensor) else None for leaf in leaves(output)),
    )


def _hooked(model: nn.Module, mode: "_Watch") -> tuple[list[Call], list[Any]]:
    # A module that is used in two places keeps its first name.
    names = {module: name for name, module in model.named_modules()}
    calls: list[Call] = []
    running: list[tuple[int, list[int]]] = []
    counts: dict[str, int] = {}

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        running.append((mode.tick(), []))
        mode.frames.append(mode.clock)

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        start, children = running.pop()
        mode.frames.pop()
        found = leaves(output)
        given = {id(leaf): at for at, leaf in enumerate(leaves((args, kwargs))) if isinstance(leaf, torch.Tensor)}
        place = len(calls)
        for child in children:
            calls[child] = dataclasses.replace(calls[child], parent=place)
        name = names[module]
        nth = counts.get(name, 0)
        counts[name] = nth + 1
        if running:
            running[-1][1].append(place)
        calls.append(
            Call(
                name=name,
                nth=nth,
                start=start,
                end=mode.tick(),
                parent=-1,
                tree=rebuild(output, iter(range(len(found)))),
                leaves=tuple(_described(leaf) for leaf in found),
                storages=tuple(mode.key(leaf) if isinstance(leaf, torch.Tensor) else None for leaf in found),
                same=tuple(given.get(id(leaf)) for leaf in found),
            )
        )

    handles: list[Any] = []
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            # It takes no hooks, so it is no call of its own; what it reads is seen all the same.
            continue
        # First in, last out: what the user's own hooks do belongs to the module they hang on.
        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))
    return calls, handles


def _described(leaf: Any) -> Any:
    match leaf:
        case torch.Tensor():
            if _storage(leaf) is None:
                # Sparse, nested and vmapped tensors have a shape but no place in a storage.
                stride: tuple[int, ...] = (0,) * leaf.dim()
                return _layout(tuple(leaf.shape), stride, 0, leaf)
            return _layout(tuple(leaf.shape), leaf.stride(), int(leaf.storage_offset()), leaf)
        case bool():
            return leaf
        case int():
            return Size(leaf)
    return leaf


def _layout(shape: tuple[int, ...], stride: tuple[int, ...], offset: int, tensor: torch.Tensor) -> Layout:
    return Layout(tuple(map(Size, shape)), tuple(map(Size, stride)), Size(offset), tensor.dtype, tensor.device)


def _storage(tensor: torch.Tensor) -> Any:
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return None
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves __init_subclass__ untyped
    """Sees every operation; the clock also ticks when a module is entered or left."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self.clock = 0
        self.storages: dict[int, Storage] = {}
        self.reads: dict[int, list[int]] = {}
        self.weights: set[int] = set()
        self.frames: list[int] = []
        self.asked: list[tuple[int, int]] = []
        self.operations: list[Operation] = []
        self._lasting: dict[int, tuple[StorageWeakRef, int]] = {}
        self._passing: dict[int, tuple[StorageWeakRef, int]] = {}
        self._met = 0
        self._constants: dict[int, str] = {}
        self._sampled: set[int] = set()

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def key(self, tensor: torch.Tensor) -> int | None:
        """Number the storage; the weak reference keeps its address from being given to another one."""
        storage = _storage(tensor)
        if storage is None:
            return None
        address = int(storage._cdata)
        if address in self._lasting:
            return self._lasting[address][1]
        if address not in self._passing:
            self._met += 1
            self._passing[address] = StorageWeakRef(storage), self._met  # type: ignore[no-untyped-call]  # untyped in torch
        return self._passing[address][1]

    def settle(self) -> None:
        """Hold what is known by now, weights and inputs, until the end."""
        self._lasting |= self._passing
        self._passing.clear()

    def _forget_the_dead(self) -> None:
        # The header of a storage lives as long as a weak reference to it. Left between freed blocks of memory,
        # thousands of headers would keep them from being used again: 256 MB for BigBird instead of 38.
        for address in [address for address, (ref, _) in self._passing.items() if ref.expired()]:  # type: ignore[no-untyped-call]  # untyped in torch
            del self._passing[address]

    def meet(self, tensor: torch.Tensor, *, is_data: bool, of_sample: bool, sources: Collection[int] = ()) -> None:
        """Write down a storage that is new, or that has been written into."""
        key = self.key(tensor)
        if key is None or key in self.reads:
            return
        if key not in self.storages:
            size = tensor.untyped_storage().nbytes()
            self.storages[key] = Storage(self.clock, self.clock, size, is_data, of_sample, set(sources))
            return
        self.storages[key].is_data |= is_data
        self.storages[key].of_sample |= of_sample
        self.storages[key].sources.update(sources)

    def finish(self, outputs: list[torch.Tensor]) -> None:
        """Count the outputs as read after the end."""
        now = self.tick()
        for tensor in outputs:
            key = self.key(tensor)
            if key in self.storages:
                self._read(self.storages[key], tensor, now)
            elif key in self.reads:
                self.reads[key].append(now)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._forget_the_dead()
        out = func(*args, **kwargs)
        now = self.tick()
        name = func.overloadpacket.__name__ if isinstance(func, torch._ops.OpOverload) else str(func)
        made = [(tensor, self.key(tensor)) for tensor in tensors(out)]
        made_keys = {key for _, key in made}
        given = leaves((list(args), kwargs))
        written = {self.key(tensor) for tensor in tensors(_written(func, args, kwargs))}
        is_data = of_sample = False
        sources = set()
        for tensor in tensors(given):
            key = self.key(tensor)
            if name in _SHAPE_ONLY:
                continue
            if key in self.reads:
                self.reads[key].append(now)
                is_data |= key in self.weights
                sources |= {key} & self.weights
                of_sample |= key in self._sampled
            elif key in self.storages:
                storage = self.storages[key]
                is_data |= storage.is_data
                of_sample |= storage.of_sample
                sources.add(key)
                storage.last = now
                # An operation whose result lies in the same memory made a view and looked at nothing.
                if key not in made_keys or key in written:
                    self._read(storage, tensor, now)
                if key in written:
                    storage.writes.append(now)
            elif key is not None and key not in self._constants:
                self._constants[key] = fingerprint.of_tensors([("", tensor)])
                given.append(self._constants[key])
        if is_data and name in _ASKING:
            self.asked.append((now, self.frames[-1] if self.frames else 0))
        for tensor, key in made:
            if key in self._constants and key not in written:
                # A view of what was there before the pass was not made in it.
                continue
            self.meet(tensor, is_data=is_data, of_sample=of_sample, sources=sources)
        self._taint(written, is_data=is_data, of_sample=of_sample)
        scalars = tuple(leaf if isinstance(leaf, (int, float, bool)) else _named(leaf) for leaf in given)
        self.operations.append(Operation(now, str(func), scalars, _flops(func, args, kwargs, out)))
        return out

    def _taint(self, written: set[int | None], *, is_data: bool, of_sample: bool) -> None:
        for key in written:
            if key in self.storages:
                self.storages[key].is_data |= is_data
                self.storages[key].of_sample |= of_sample
            elif key in self.reads and is_data:
                # A buffer that the pass writes (a cache) carries the sample from then on, as a weight does.
                self.weights.add(key)
                if of_sample:
                    self._sampled.add(key)

    def _read(self, storage: Storage, tensor: torch.Tensor, now: int) -> None:
        storage.last = now
        storage.reads.append(Read(now, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())))


def _named(leaf: Any) -> str:
    return "tensor" if isinstance(leaf, torch.Tensor) else str(leaf)


def _written(func: Any, args: Any, kwargs: Any) -> list[Any]:
    return [args[place] if place < len(args) else kwargs.get(name) for place, name in _written_arguments(func)]


@functools.cache
def _written_arguments(func: Any) -> tuple[tuple[int, str], ...]:
    schema = getattr(func, "_schema", None)
    return tuple(
        (place, argument.name)
        for place, argument in enumerate(schema.arguments if schema else ())
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    packet = getattr(func, "overloadpacket", None)
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        # The registry of torch 2.14 knows the formula under the name of the CUDA kernel only.
        packet = torch.ops.aten._scaled_dot_product_flash_attention
    formula: Callable[..., int] | None = flop_registry.get(packet)
    return int(formula(*args, **kwargs, out_val=out)) if formula else 0
