"""The freeze under test, and freezes that are broken on purpose, so that each case is seen to fail."""

import inspect
import re

import pytest

import frostline as fl


@pytest.fixture
def freezing():
    return fl


@pytest.fixture
def cases_failed_by():
    """Run those cases of a test module that take nothing but a freeze; return the numbers that it does not keep."""

    def failed(module, broken):
        cases = [(name, case) for name, case in module.items() if name.startswith("test_case_")]
        numbers = set()
        for name, case in cases:
            if list(inspect.signature(case).parameters) == ["freezing"] and not keeps(case, broken):
                numbers.add(int(re.match(r"test_case_(\d+)", name)[1]))
        return numbers

    return failed


def keeps(case, broken):
    try:
        case(broken)
    # A case may also meet what a broken freeze leads to: torch's own errors, or a record that is not there.
    except (AssertionError, pytest.fail.Exception, RuntimeError, ValueError, AttributeError, KeyError):
        return False
    return True


class Flags:
    """`requires_grad = False` and nothing else, as people write it."""

    @staticmethod
    def freeze(model, depth, example):
        for weight in below(model, depth, example)[0]:
            weight.requires_grad_(False)

    @staticmethod
    def unfreeze(model):
        for weight in model.parameters():
            weight.requires_grad_(True)

    @staticmethod
    def param_groups(model, lr, **_):
        return [{"params": list(model.parameters()), "lr": lr, "name": "all"}]

    freeze_to = freeze


class Modes:
    """Modules below the cut kept in eval mode, their weights left to the optimizer."""

    @staticmethod
    def freeze(model, depth, example):
        _, modules = below(model, depth, example)
        for module in modules:
            module.train = lambda mode=True, module=module: module
            module.training = False

    @staticmethod
    def unfreeze(model):
        for module in model.modules():
            vars(module).pop("train", None)
        model.train()

    @staticmethod
    def param_groups(model, lr, **_):
        return [{"params": [weight], "lr": lr, "name": name} for name, weight in model.named_parameters()]

    freeze_to = freeze


def below(model, depth, example):
    """Weights and modules of the stages below a cut; shared ones count as below, and blocked cuts as open."""
    graph = fl.trace(model, example)
    depth = depth if isinstance(depth, int) and depth >= 0 else graph.resolve(depth)
    keys = {key for stage in graph.stages[:depth] for key in stage.keys}
    weights = [weight for name, weight in model.named_parameters() if name in keys]
    live = {key for stage in graph.stages[depth:] for key in stage.keys}
    modules = [
        module
        for name, module in model.named_modules()
        if name and not any(key.startswith(f"{name}.") for key in live) and name.split(".")[0] != "head"
    ]
    return weights, modules


@pytest.fixture(params=[Flags, Modes], ids=lambda broken: broken.__name__.lower())
def broken(request):
    return request.param
