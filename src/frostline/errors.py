"""Everything frostline raises: what was found, what was needed, what to do next.

FrostlineError
├── DataError(ValueError)
│   ├── NoSuchData                 the path or name does not exist
│   ├── EmptyData                  nothing that can be read as a sample
│   ├── BadSample                  one file cannot be read
│   ├── OneClass                   nothing to tell apart
│   ├── ClassTooSmall              a class has too few samples to split
│   ├── UnknownClass               a class in one part that the training part lacks
│   ├── BadSplit                   shares that leave no training part
│   └── NotRepeatable              two readings of one sample differ
├── ModelError(ValueError)
│   ├── BadOutput                  the output is not (B, K)
│   ├── NoParameters               nothing to train
│   ├── MetaParameters             weights without values
│   ├── BadInputSize               the network refuses this picture size
│   ├── WeightsDoNotFit            names or shapes differ
│   ├── UnknownModel               no such model name
│   ├── WeightsNotReachable        a hub could not be asked
│   ├── CutBlocked                 this depth cannot be frozen
│   ├── CutNotProven               the live part alone does not give the network's bits
│   ├── PathChanged                a network took another path than with the batch that was watched
│   └── UnknownStage               no such depth or stage
├── StoreError(OSError)
│   ├── StoreStale                 the folder holds rows of something else
│   ├── StoreCorrupt               a store file is not what its manifest says
│   ├── StoreTooLarge              the rows would not fit on the disk
│   └── DiskFull                   the disk filled up during a write
├── RunError(OSError)
│   ├── RunBusy                    another process works in this folder
│   ├── RunOfOtherArguments        the folder holds a run of other data or settings
│   ├── NotWritable                the folder cannot be written
│   └── NotARun                    the folder holds no finished run
├── DeltaMismatch(ValueError)      a delta for another base network
├── NewerSchema(ValueError)        a file of a later version of frostline
├── BadArgument(ValueError)        a value outside its range
├── AlreadyWrapped(RuntimeError)   a change of depth that DistributedDataParallel would miss
├── FrozenMoved(RuntimeError)      what is frozen has changed
├── AllTrialsFailed(RuntimeError)  no trial of the search finished
└── MissingExtra(ImportError)      a package that only some users need
"""


class FrostlineError(Exception):
    """Base of all errors that frostline raises on purpose.

    Example:
        >>> issubclass(CutBlocked, FrostlineError)
        True
    """

    def __init__(self, message: str, **values: object) -> None:
        super().__init__(message)
        self.message = message
        for name, value in values.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        return self.message


class DataError(FrostlineError, ValueError):
    """The user's samples cannot be used as they are."""


class NoSuchData(DataError):
    """The folder, manifest or name does not exist."""


class EmptyData(DataError):
    """There is nothing that can be read as a sample."""


class BadSample(DataError):
    """A sample cannot be read; `paths` lists all that were found."""


class OneClass(DataError):
    """All samples carry one label."""


class ClassTooSmall(DataError):
    """A class has too few samples to split."""


class UnknownClass(DataError):
    """A part holds a class that the training part lacks."""


class BadSplit(DataError):
    """The shares for validation and test leave nothing to train on."""


class NotRepeatable(DataError):
    """Two readings of one sample differ, so a kept row would be a lie."""


class ModelError(FrostlineError, ValueError):
    """The network cannot be used as it is."""


class BadOutput(ModelError):
    """The network's output is not (B, K)."""


class NoParameters(ModelError):
    """The network has nothing to train."""


class MetaParameters(ModelError):
    """Some parameters are on the meta device and hold no values."""


class BadInputSize(ModelError):
    """The network refuses pictures of this size."""


class WeightsDoNotFit(ModelError):
    """A weights file and the network differ in names or shapes."""


class UnknownModel(ModelError):
    """No model of this name is known."""


class WeightsNotReachable(ModelError):
    """The pretrained weights could not be fetched from their hub."""


class CutBlocked(ModelError):
    """This depth cannot be frozen; `reason` says why."""


class CutNotProven(ModelError):
    """The live part alone does not give the bits of the whole network; `reason` says where."""


class PathChanged(ModelError):
    """The network took another path than with the batch that was watched; training takes the step again."""


class UnknownStage(ModelError):
    """No stage has this number or name."""


class StoreError(FrostlineError, OSError):
    """Kept rows cannot be written or read."""


class StoreStale(StoreError):
    """The folder holds rows of another network, cut, engine, precision or data."""


class StoreCorrupt(StoreError):
    """A file of the store is not what its manifest says."""


class StoreTooLarge(StoreError):
    """The predicted bytes exceed the free disk."""


class DiskFull(StoreError):
    """The disk filled up during a write; nothing half-written is kept."""


class RunError(FrostlineError, OSError):
    """A run folder cannot be used."""


class RunBusy(RunError):
    """Another process works in this run folder."""


class RunOfOtherArguments(RunError):
    """The run folder holds a run of other data, weights or settings."""


class NotWritable(RunError):
    """The folder cannot be written."""


class NotARun(RunError):
    """The folder holds no finished run."""


class DeltaMismatch(FrostlineError, ValueError):
    """The delta was made for another base network."""


class NewerSchema(FrostlineError, ValueError):
    """The file was written by a later version of frostline."""


class BadArgument(FrostlineError, ValueError):
    """An argument is outside its range."""


class AlreadyWrapped(FrostlineError, RuntimeError):
    """The depth of a network cannot change while DistributedDataParallel holds it."""


class FrozenMoved(FrostlineError, RuntimeError):
    """Tensors that were frozen have changed; `moved` names them."""


class AllTrialsFailed(FrostlineError, RuntimeError):
    """No trial of the search finished; `failures` says why."""


class MissingExtra(FrostlineError, ImportError):
    """A package that only some users need is not installed."""
