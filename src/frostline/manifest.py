"""What a store of kept rows says of itself: what its rows depend on, and how they came about."""

from frostline.records import Record, Wire
from frostline.rowfiles import RowFile

MANIFEST = "manifest.json"
"""Written last: a store that has it is whole."""

_IN_WORDS = {
    "frozen": "weights or the cut of the network",
    "wires": "wires",
    "samples": "content or order of the samples",
    "preparation": "preparation",
    "views": "number of views",
    "engine": "engine",
    "precision": "precision",
    "dtype": "precision on disk",
}


class StoreKey(Record):
    """What a row depends on. Two stores with equal keys hold the same rows.

    Args:
        frozen: Fingerprint of the frozen part, its weights and its cut.
        wires: What is kept of each sample, with the shape of one sample.
        samples: Fingerprint of the samples' content, in order.
        preparation: How a sample becomes an input.
        views: Stored views of each sample.
        engine: What was asked to run the frozen part.
        precision: What was asked of its arithmetic.
        dtype: "float32" keeps every wire as it is, "float16" keeps halves.
    """

    frozen: str
    wires: tuple[Wire, ...]
    samples: str
    preparation: str
    views: int
    engine: str
    precision: str
    dtype: str


class StoreManifest(Record):
    """What a store holds and how it came about: `manifest.json`.

    Args:
        identity: What a row depends on.
        samples: N.
        files: One for each wire.
        engine: What ran the frozen part.
        precision: Of its arithmetic.
        why: Why that is not what was asked for, or "".
        batch_size: B at which every row was computed.
        error: Largest difference to plain torch on rows of the first and the last batch, relative to the largest value.
        rounding: Largest difference that "float16" adds on the first batch, in the same way.
        seconds: What computing and writing took, of all stores that one pass filled.
        torch: Version of torch.
    """

    identity: StoreKey
    samples: int
    files: tuple[RowFile, ...]
    engine: str
    why: str
    batch_size: int
    error: float
    rounding: float
    seconds: float
    torch: str
    precision: str = "float32"


def differences(found: StoreKey, wanted: StoreKey) -> dict[str, str]:
    """Say in which fields two keys differ, each in words.

    Args:
        found: What a store is of.
        wanted: What was asked for.

    Returns:
        By name of the field: what it is, what was found and what was wanted.

    Example:
        >>> key = StoreKey(
        ...     frozen="f",
        ...     wires=(),
        ...     samples="s",
        ...     preparation="p",
        ...     views=1,
        ...     engine="torch",
        ...     precision="float32",
        ...     dtype="h",
        ... )
        >>> differences(key, key.model_copy(update={"views": 2}))
        {'views': 'number of views: 1, wanted 2'}
    """
    return {
        name: f"{words}: {_shown(found, name)}, wanted {_shown(wanted, name)}"
        for name, words in _IN_WORDS.items()
        if getattr(found, name) != getattr(wanted, name)
    }


def _shown(key: StoreKey, name: str) -> str:
    if name == "wires":
        return ", ".join(f"{wire.name} {wire.shape}" for wire in key.wires)
    return str(getattr(key, name))
