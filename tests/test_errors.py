"""The tree of errors: complete, rooted, and refining built-ins."""

import inspect
import re

import pytest

from frostline import errors

KINDS = [thing for thing in vars(errors).values() if inspect.isclass(thing) and issubclass(thing, Exception)]


def test_tree_in_the_docstring_is_complete():
    tree = errors.__doc__.split("do next.\n", 1)[1]

    drawn = set(re.findall(r"^[│├└─ ]*(\w+)", tree, flags=re.MULTILINE))

    assert drawn == {kind.__name__ for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_error_keeps_its_message_and_values(kind):
    error = kind("Kind: found 3, needed 4", found=3, needed=4)

    assert str(error) == error.message == "Kind: found 3, needed 4"
    assert (error.found, error.needed) == (3, 4)


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind is not errors.FrostlineError], ids=lambda k: k.__name__
)
def test_error_refines_a_built_in(kind):
    built_in = {base for base in kind.__mro__ if base.__module__ == "builtins"} - {Exception, BaseException, object}

    assert issubclass(kind, errors.FrostlineError)
    assert built_in
