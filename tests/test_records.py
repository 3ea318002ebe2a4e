"""Laws that hold for every record of the package."""

import importlib
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from frostline.records import Cost, Record, Trial, TrialSpec

SOURCE = Path(__file__).parent.parent / "src" / "frostline"


def all_records() -> list[type[Record]]:
    def below(record: type[Record]) -> Iterator[type[Record]]:
        for child in record.__subclasses__():
            yield child
            yield from below(child)

    for file in SOURCE.rglob("*.py"):
        if "(Record)" in file.read_text("utf-8"):
            importlib.import_module(".".join(file.relative_to(SOURCE.parent).with_suffix("").parts))
    ours = {record for record in below(Record) if record.__module__.startswith("frostline.")}
    return sorted(ours, key=lambda record: record.__name__)


def sample(annotation: object) -> object:
    """Some value of that type, with every container filled."""
    arguments = typing.get_args(annotation)
    match typing.get_origin(annotation) or annotation:
        case typing.Literal:
            return arguments[0]
        case typing.Union | types.UnionType:
            return sample(arguments[0])
        case kind if kind is tuple:
            return (sample(arguments[0]),) * 2 if arguments[-1] is ... else tuple(map(sample, arguments))
        case kind if isinstance(kind, type) and issubclass(kind, Record):
            return kind(**{name: sample(field.annotation) for name, field in kind.model_fields.items()})
        case kind if kind in (int, float, str, bool):
            return kind(1)
        case typing.Any:
            return None
    raise AssertionError(f"a record holds {annotation}, which is no fact: numbers, strings, None, tuples, records")


each_record = pytest.mark.parametrize("record", all_records(), ids=lambda record: record.__name__)


@each_record
def test_record_hashes_and_survives_json(record):
    fact = sample(record)

    again = record.model_validate_json(fact.model_dump_json())

    assert again == fact
    assert hash(again) == hash(fact)
    assert again.key == fact.key


@each_record
def test_record_is_immutable_and_refuses_unknown_fields(record):
    fact = sample(record)
    values = {name: getattr(fact, name) for name in record.model_fields}

    with pytest.raises(ValueError, match="frozen"):
        setattr(fact, next(iter(values)), 1)
    with pytest.raises(ValueError, match="Extra inputs"):
        record(**values, melted=True)


def test_a_list_is_no_fact():
    with pytest.raises(AssertionError, match="no fact"):
        sample(list[int])


# --- figures that follow ----------------------------------------------------------------------


def test_failed_trial_loses_against_any_other():
    spec = sample(TrialSpec)

    assert Trial(spec=spec, losses=(0.1,), failure="NaN loss").loss == float("inf")
    assert Trial(spec=spec, losses=(0.5, 1.5), hits=(True, False)).loss == 1.0


def test_cost_is_counted_in_full_finetunes():
    cost = Cost(seconds=5, flops=3, full_finetune_seconds=10, full_finetune_flops=4, by_phase=())

    assert (cost.share_seconds, cost.share_flops) == (0.5, 0.75)
