"""What every fact is made of: a frozen pydantic record that hashes, compares and survives JSON."""

import hashlib
from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A fact: immutable, hashable, without unknown fields.

    Example:
        >>> class Point(Record):
        ...     x: int
        >>> Point(x=1) == Point.model_validate_json(Point(x=1).model_dump_json())
        True
    """

    # A failed trial's losses are NaN or infinite; as strings they are JSON that every reader takes.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True, ser_json_inf_nan="strings")

    version: ClassVar[int] = 1
    """Schema number written to disk; a larger one is refused on reading."""

    @property
    def key(self) -> str:
        """Sixteen hexadecimal digits that name this record's content."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]
