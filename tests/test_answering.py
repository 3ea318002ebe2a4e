"""What the stages answer, laid out."""

import torch
from torch import nn

from frostline.answering import Watch, as_line, rows_of
from frostline.testing import specimen
from frostline.tracing import trace


def test_a_line_keeps_its_channels_whichever_axis_is_time():
    answers = torch.rand(2, 3, 5, 7)

    for axis, shape in ((2, (2, 3, 5, 7)), (1, (2, 3, 7, 5)), (0, (2, 5, 7, 3))):
        assert as_line(answers, axis).shape == shape
    assert torch.equal(as_line(answers[..., 0], 1)[:, :, 0], answers[..., 0])
    assert torch.equal(as_line(answers[..., 0], 0)[:, :, 0], answers[..., 0].transpose(1, 2))


def test_what_a_watch_takes_is_what_the_modules_give_and_no_hook_stays():
    one = specimen("chain")
    net = one.model.eval()
    watch = Watch(net, trace(net, one.example), rows_of)

    taken = watch.run(one.inputs, lambda output, answers: (output.name, answers))

    for name, answers in taken:
        assert torch.equal(answers, net[: int(name) + 1](one.example))
    assert len(taken) == len(trace(net, one.example).open_depths) - 1
    assert not any(module._forward_hooks for module in net.modules())


def test_outputs_that_are_not_laid_out_are_not_watched():
    layers = nn.Conv1d(1, 2, 3), nn.Conv1d(2, 2, 1), nn.Flatten()
    net = nn.Sequential(*layers, nn.Linear(16, 4), nn.Linear(4, 3))
    x = torch.rand(4, 1, 10)

    watch = Watch(net, trace(net, x), lambda output, answers: answers if answers.dim() == 3 else None)

    assert [output.name for output in watch.outputs] == ["0"]
