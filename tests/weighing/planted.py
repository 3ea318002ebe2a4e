"""Outcomes made up for attempts, so that the truth that a claim must find is known."""

from frostline.attempts import Outcome
from frostline.records import EpochPoint
from frostline.weighing.arms import unanswered

SAMPLES = 400


def answers(accuracy, samples=SAMPLES):
    """The first so many right: arms of equal accuracy then agree on every sample."""
    right = round(accuracy * samples)
    return (True,) * right + (False,) * (samples - right)


def trained(attempt, accuracy, **more):
    """An attempt that went well, its validation accuracy being that of the test part."""
    curve = tuple(look(epoch, 1 - accuracy, accuracy) for epoch in range(3))
    known = {"curve": curve, "test_hits": answers(accuracy), "test_confidences": (0.9,) * SAMPLES}
    return Outcome(**known | {"attempt": attempt, "seconds": 1.0, "flops": 1.0} | more)


def look(epoch, valid_loss, valid_accuracy=0.9, **more):
    return EpochPoint(
        epoch=epoch,
        **{"train_loss": None, "learning_rate": 1e-3, "seconds": 1.0} | more,
        valid_loss=valid_loss,
        valid_accuracy=valid_accuracy,
    )


def failed(attempt):
    return Outcome(attempt=attempt, failure="the loss is nan")


def carried_out(wanted, setting, respond):
    """Answer what is wanted until nothing more is."""
    outcomes = {}
    while asked := unanswered(wanted(setting, outcomes), outcomes):
        outcomes |= {attempt.key: respond(attempt) for attempt in asked}
    return outcomes
