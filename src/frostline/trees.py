"""Nested inputs and outputs: tuples, lists, dicts and dataclasses with tensors at their leaves."""

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from frostline.errors import BadArgument


def leaves(tree: Any) -> list[Any]:
    """List what lies at the ends of nested tuples, lists, dicts and dataclasses, in order.

    Example:
        >>> leaves({"a": (1, [2]), "b": None})
        [1, 2, None]
    """
    return [leaf for _, child in _children(tree) for leaf in leaves(child)] if _is_branch(tree) else [tree]


def tensors(tree: Any) -> list[torch.Tensor]:
    """List the tensors among the leaves.

    Example:
        >>> len(tensors(({"x": torch.ones(2)}, 3, torch.zeros(1))))
        2
    """
    return [leaf for leaf in leaves(tree) if isinstance(leaf, torch.Tensor)]


def rebuild(tree: Any, new: Iterator[Any]) -> Any:
    """Make a tree of the same types whose leaves are the next ones of `new`.

    Example:
        >>> rebuild({"a": (1, 2), "b": [3]}, iter("xyz"))
        {'a': ('x', 'y'), 'b': ['z']}
    """
    if not _is_branch(tree):
        return next(new)
    made = [(name, rebuild(child, new)) for name, child in _children(tree)]
    match tree:
        # The outputs of `transformers` are dict and dataclass at once: only their constructor keeps both in step.
        case dict() if dataclasses.is_dataclass(tree):
            return type(tree)(**dict(made))
        case dict():
            # A subclass may need more than its items to be made; a copy of one that is plain stops a compiler.
            fresh = {} if type(tree) is dict else copy.copy(tree)
            fresh.update(made)
            return fresh
        case tuple() if hasattr(tree, "_fields"):
            return type(tree)(*(child for _, child in made))
        case tuple() | list():
            return type(tree)(child for _, child in made)
    fresh = copy.copy(tree)
    for name, child in made:
        # A frozen dataclass forbids plain assignment.
        object.__setattr__(fresh, name, child)
    return fresh


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Turn an example into the positional and the named arguments of a call.

    Args:
        example: One tensor, a tuple of positional arguments or a dict of named ones.

    Example:
        >>> arguments({"x": 1})
        ((), {'x': 1})
    """
    match example:
        case dict():
            return (), dict(example)
        case tuple() | list():
            return tuple(example), {}
    return (example,), {}


def batch_of(example: Any) -> int:
    """B: the first axis of the first tensor that has axes.

    Raises:
        BadArgument: There is no such tensor, or it holds no row.

    Example:
        >>> batch_of({"x": torch.ones(5, 2)})
        5
    """
    found = [len(tensor) for tensor in tensors(example) if tensor.dim()]
    if not found or not found[0]:
        raise BadArgument(
            f"BadArgument: the example holds {len(tensors(example))} tensors and no sample; give one tensor (B, ...), "
            "a tuple or a dict of them, with B of at least 1.",
            example=example,
        )
    return found[0]


def with_rows(example: Any, rows: int) -> Any:
    """Cut an example down to that many rows, or repeat it up to them.

    Example:
        >>> with_rows((torch.ones(2, 3), "mode"), 4)[0].shape
        torch.Size([4, 3])
    """
    batch = batch_of(example)

    def resized(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or leaf.dim() == 0 or len(leaf) != batch:
            return leaf
        return leaf[:rows] if rows <= batch else torch.cat([leaf] * -(-rows // batch))[:rows]

    return rebuild(example, iter([resized(leaf) for leaf in leaves(example)]))


def _is_branch(tree: Any) -> bool:
    return isinstance(tree, (dict, tuple, list)) or (dataclasses.is_dataclass(tree) and not isinstance(tree, type))


def _children(tree: Any) -> list[tuple[Any, Any]]:
    match tree:
        case dict():
            return list(tree.items())
        case tuple() | list():
            return list(enumerate(tree))
    return [(field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree)]
