"""Equal names mean equal content."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline import fingerprint


@given(st.binary(max_size=50), st.binary(max_size=50))
@settings(max_examples=25, deadline=None)
def test_bytes_have_equal_names_only_if_equal(a, b):
    names_agree = fingerprint.of_bytes(a) == fingerprint.of_bytes(b)

    assert names_agree == (a == b)


@given(st.lists(st.text(max_size=4), max_size=4), st.lists(st.text(max_size=4), max_size=4))
@settings(max_examples=25, deadline=None)
def test_texts_have_equal_names_only_if_equal_part_by_part(a, b):
    names_agree = fingerprint.of_text(*a) == fingerprint.of_text(*b)

    assert names_agree == (a == b)


@given(st.integers(0, 5), st.integers(0, 7))
@settings(max_examples=20, deadline=None)
def test_one_flipped_bit_of_a_tensor_changes_its_name(place, bit):
    tensor = torch.arange(6, dtype=torch.float32)
    changed = tensor.clone()
    changed.view(torch.uint8)[4 * place] ^= 1 << bit

    assert fingerprint.of_tensors([("w", tensor)]) != fingerprint.of_tensors([("w", changed)])


def test_order_of_pairs_plays_no_part():
    pairs = [("a", torch.ones(2)), ("b", torch.zeros(3))]

    assert fingerprint.of_tensors(pairs) == fingerprint.of_tensors(reversed(pairs))


def test_memory_layout_plays_no_part():
    tensor = torch.rand(2, 3, 4, 5)
    channels_last = tensor.contiguous(memory_format=torch.channels_last)

    assert fingerprint.of_tensors([("w", tensor)]) == fingerprint.of_tensors([("w", channels_last)])


def test_name_type_and_shape_play_a_part():
    tensor = torch.zeros(2, 3)
    others = [("v", tensor), ("w", tensor.int()), ("w", tensor.reshape(3, 2)), ("w", tensor.reshape(6))]

    names = {fingerprint.of_tensors([pair]) for pair in [("w", tensor), *others]}

    assert len(names) == 5


def test_swapped_tensors_change_the_name():
    one, zero = torch.ones(2), torch.zeros(2)

    assert fingerprint.of_tensors([("a", one), ("b", zero)]) != fingerprint.of_tensors([("a", zero), ("b", one)])


def test_scalars_halves_and_empty_tensors_have_names():
    tensors = [
        torch.tensor(1.0),
        torch.ones(2).bfloat16(),
        torch.ones(0, 3),
        torch.tensor([True]),
        torch.ones(2).half(),
    ]

    names = {fingerprint.of_tensors([("w", tensor)]) for tensor in tensors}

    assert len(names) == 5


def test_tensor_keeps_its_gradient_and_strides():
    tensor = torch.rand(3, 4, requires_grad=True)

    fingerprint.of_tensors([("w", tensor.t())])

    assert tensor.requires_grad
    assert tensor.stride() == (4, 1)


def test_file_has_the_name_of_its_bytes(tmp_path):
    file = tmp_path / "übung 1.png"
    file.write_bytes(b"ice" * 1000)

    assert fingerprint.of_file(file) == fingerprint.of_bytes(b"ice" * 1000)


def test_names_are_32_hexadecimal_digits():
    names = [fingerprint.of_bytes(b""), fingerprint.of_text(), fingerprint.of_tensors([])]

    assert all(len(name) == 32 and int(name, 16) >= 0 for name in names)


def test_bits_are_the_same_for_nan_and_differ_for_the_sign_of_zero_and_the_shape():
    nan, zero = torch.tensor([torch.nan]), torch.zeros(2)

    assert fingerprint.same_bits(nan, nan.clone())
    assert not fingerprint.same_bits(zero, -zero)
    assert not fingerprint.same_bits(zero, zero.reshape(2, 1))
