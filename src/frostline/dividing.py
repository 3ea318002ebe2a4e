"""Which pictures train, which pick the depth and which judge it."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from frostline import fingerprint
from frostline.errors import BadSplit, ClassTooSmall
from frostline.listing import Listing, Part, grouped


def divide(listing: Listing, valid: float, test: float, seed: int) -> dict[Part, list[int]]:
    """Give every row to a part: stratified, seeded, equal bytes together.

    A picture's place in the queue follows from the seed and its bytes alone, so that renaming files moves
    none of them to another part, and adding a few moves few.

    Raises:
        ClassTooSmall: A class has fewer different pictures than there are parts to fill.
    """
    shares = missing_parts(listing, valid, test)
    parts: dict[Part, list[int]] = {"train": [], "valid": [], "test": []}
    movable: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    first_label = {rows[0]: listing.labels[rows[0]] for rows in grouped(listing.digests).values()}
    leader = {digest: rows[0] for digest, rows in grouped(listing.digests).items()}
    for row, (digest, part) in enumerate(zip(listing.digests, listing.parts, strict=True)):
        if shares and part in {None, "train"}:
            # The same bytes under two labels stay together, in the part that their first label draws.
            movable[first_label[leader[digest]]][digest].append(row)
        else:
            parts[part or "train"].append(row)
    too_small = {}
    for label in range(len(listing.classes)):
        groups = movable[label]
        trained = len(groups) if shares else sum(listing.labels[row] == label for row in parts["train"])
        if trained < len(shares) + 1:
            too_small[listing.classes[label]] = trained
            continue
        order = sorted(groups, key=lambda digest: fingerprint.of_text(str(seed), digest))
        # Copies go to the training part first: a picture that counts ten times blurs a score.
        order.sort(key=lambda digest: len(groups[digest]))
        _deal([groups[digest] for digest in order], shares, parts)
    if too_small:
        shown = ", ".join(f"{name!r} has {count}" for name, count in list(too_small.items())[:5])
        more = f" and {len(too_small) - 5} more classes" if len(too_small) > 5 else ""
        raise ClassTooSmall(
            f"ClassTooSmall: {shown}{more}; {len(shares) + 1} different pictures are needed, one each for "
            f"{', '.join(['training', *shares])}. Add pictures or remove the class.",
            counts=tuple(too_small.items()),
            needed=len(shares) + 1,
        )
    return {part: sorted(rows) for part, rows in parts.items()}


def _deal(groups: list[list[int]], shares: Mapping[Part, float], parts: dict[Part, list[int]]) -> None:
    total = sum(map(len, groups))
    left = list(groups)
    for number, (part, share) in enumerate(shares.items()):
        reserved = len(shares) - number
        wanted = max(1, round(total * share))
        taken = 0
        while taken < wanted and len(left) > reserved:
            rows = left.pop(0)
            parts[part] += rows
            taken += len(rows)
    for rows in left:
        parts["train"] += rows


def missing_parts(listing: Listing, valid: float, test: float) -> dict[Part, float]:
    """Shares of the parts that the user did not give.

    Raises:
        BadSplit: The shares are outside 0 to 1, or leave no training part.
    """
    given = set(listing.parts)
    shares: dict[Part, float] = {}
    if "test" not in given:
        shares["test"] = test
    if "valid" not in given:
        shares["valid"] = valid
    for part, share in shares.items():
        if not 0 < share < 1:
            raise BadSplit(
                f"BadSplit: --{part} is {share:g}; it must lie between 0 and 1, for instance .2. Validation pictures "
                "pick the depth and test pictures judge it, so neither part may be empty.",
                part=part,
                share=share,
            )
    if sum(shares.values()) >= 1:
        raise BadSplit(
            f"BadSplit: --valid {valid:g} and --test {test:g} make {valid + test:g} of everything and leave nothing to "
            "train on. Their sum must be below 1; .2 each is usual.",
            valid=valid,
            test=test,
        )
    return shares


def counts(listing: Listing, parts: Mapping[Part, Sequence[int]]) -> tuple[tuple[int, int, int], ...]:
    """(train, valid, test) pictures by class."""
    by_part = [Counter(listing.labels[row] for row in parts[part]) for part in ("train", "valid", "test")]
    return tuple((by_part[0][label], by_part[1][label], by_part[2][label]) for label in range(len(listing.classes)))
