import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from frostline import convolving
from frostline.convolving import _foldable, _Geometry, _has_slow_gradient, quick_convolutions
from frostline.errors import PathChanged


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network(conv, *, seed=0, norm=nn.BatchNorm2d):
    """A convolution and a norm whose statistics are far from zero and one, in eval mode."""
    net = nn.Sequential()
    net.add_module("conv", conv)
    net.add_module("norm", norm(conv.out_channels))
    with torch.no_grad():
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=seeded(seed + len(name)))
                tensor.copy_(noise.abs() + 0.5 if name.endswith("running_var") else noise)
    return net.eval()


def thin():
    return network(nn.Conv2d(4, 6, 1))


def batch(channels=4, side=5):
    return torch.randn(3, channels, side, side, generator=seeded(5))


def gradients(net, x, *, context=None):
    """Output, and gradients of the input and each parameter, of a loss in which each output pixel weighs otherwise."""
    x = x.clone().requires_grad_()
    with context or quick_convolutions(net, (x.detach(),)):
        output = net(x)
        weigh = torch.randn(output.shape, generator=seeded(9), dtype=output.dtype)
        given = [x, *(parameter for parameter in net.parameters() if parameter.requires_grad)]
        found = torch.autograd.grad((output * weigh).sum(), given)
    return output, *found


def plain(net, x):
    return gradients(net, x, context=torch.enable_grad())


def assert_close(ones, others, tolerance=1e-5):
    for one, other in zip(ones, others, strict=True):
        assert (one - other).norm() <= tolerance * other.norm() + 1e-6


def folds(net, x=None):
    return bool(_foldable(net, (batch() if x is None else x,)))


sides = st.integers(1, 3)


@st.composite
def convolutions(draw):
    """A convolution with the side lengths of its input."""
    kind = draw(st.sampled_from(["depthwise", "1x1", "any"]))
    kernel = (1, 1) if kind == "1x1" else draw(st.tuples(st.integers(1, 4), st.integers(1, 7)))
    conv = nn.Conv2d(
        6,
        6 if kind == "depthwise" else draw(st.sampled_from([6, 12])),
        kernel,
        stride=draw(st.tuples(sides, sides)),
        padding=draw(st.tuples(st.integers(0, 4), st.integers(0, 4))),
        dilation=draw(st.sampled_from([1, 2])) if kind == "any" else 1,
        groups=draw(st.sampled_from({"1x1": [1], "depthwise": [6], "any": [1, 2, 6]}[kind])),
        bias=draw(st.booleans()),
    )
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    for side, pad, k, spread in zip(shape, conv.padding, conv.kernel_size, conv.dilation, strict=True):
        assume(side + 2 * pad > spread * (k - 1))
    return conv, shape


@settings(max_examples=150, deadline=None)
@given(convolutions(), st.booleans(), st.sampled_from([torch.contiguous_format, torch.channels_last]))
def test_outputs_and_gradients_are_those_of_torch(case, is_normed, order):
    conv, shape = case
    net = (network(conv) if is_normed else nn.Sequential(conv)).to(memory_format=order)
    x = torch.randn(2, 6, *shape, generator=seeded(1)).to(memory_format=order)

    assert_close(gradients(net, x), plain(net, x))


# --- what is done otherwise -------------------------------------------------------------------


def steps(output):
    """Names of the steps of the backward pass."""
    found, todo = set(), [output.grad_fn]
    while todo:
        step = todo.pop()
        if step is not None and step not in found:
            found.add(step)
            todo += [before for before, _ in step.next_functions]
    return {type(step).__name__ for step in found}


OURS, NORM = "_ConvolveBackward", "NativeBatchNormBackward0"


@pytest.mark.parametrize("conv", [nn.Conv2d(4, 6, 1), nn.Conv2d(4, 4, 3, groups=4)], ids=["1x1", "depthwise"])
def test_norm_of_a_thin_convolution_takes_no_step_of_its_own(conv):
    net, x = network(conv), batch()

    with quick_convolutions(net, (x,)):
        found = steps(net(x))

    assert OURS in found
    assert NORM not in found


def test_wide_kernels_get_their_gradient_in_columns_of_three(monkeypatch):
    net, x, widths = nn.Conv2d(4, 4, 5, groups=4), batch(side=7), []
    backward = convolving._convolution_backward

    def watched(gradient, x, weight, geometry, wanted):
        widths.append((weight.shape[3], wanted))
        return backward(gradient, x, weight, geometry, wanted)

    monkeypatch.setattr(convolving, "_convolution_backward", watched)
    with quick_convolutions(net, (x,)):
        output = net(x.requires_grad_())
    output.sum().backward()

    assert widths == [(5, (True, False)), (3, (False, True)), (2, (False, True))]


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "is_slow"),
    [(8, 3, 1, False), (8, 4, 1, True), (2, 3, 1, True), (3, 3, 1, False), (3, 3, 2, True), (4, 3, 2, False)],
)
def test_gradients_are_slow_of_wide_kernels_and_on_low_maps(side, kernel, stride, is_slow):
    weight = torch.empty(4, 1, kernel, kernel)

    # As they were timed on a processor with AVX-512.
    assert _has_slow_gradient(torch.empty(2, 4, side, side), weight, _Geometry((stride, stride), (1, 1), 4)) == is_slow


# --- what is left alone -----------------------------------------------------------------------


class Reads(nn.Module):
    """A 1x1 convolution and its norm; `also` gets the convolution's output, and what it returns is added."""

    def __init__(self, also):
        super().__init__()
        self.inner = thin()
        self.also = also

    def forward(self, x):
        raw = self.inner.conv(x)
        return self.inner.norm(raw) + self.also(self, x, raw)


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x / 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient / 2


def keep(net, x, raw):
    net.kept = raw
    return 0


@pytest.mark.parametrize(
    "also",
    [
        lambda net, x, raw: torch.relu(raw),
        lambda net, x, raw: torch.cat([x, raw], 1).mean(),
        lambda net, x, raw: net.inner.norm(raw),
        lambda net, x, raw: Halved.apply(raw),
        lambda net, x, raw: float(raw.detach().mean()),
        lambda net, x, raw: torch.zeros(1) if raw[0, 0, 0, 0] > 0 else torch.ones(1),
        lambda net, x, raw: torch.from_numpy(raw.detach().numpy().copy()),
        keep,
    ],
    ids=["relu", "cat", "norm again", "Function", "mean", "branch", "numpy", "kept"],
)
def test_convolution_with_another_reader_than_its_norm_is_left_alone(also):
    net = Reads(also)

    assert not folds(net)
    assert_close(gradients(net, batch()), plain(net, batch()))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
def test_convolution_that_scripted_code_reads_is_left_alone():
    relu = torch.jit.script(nn.ReLU())

    assert not folds(Reads(lambda net, x, raw: relu(raw)))


def test_convolution_whose_shape_alone_is_read_as_well_is_folded():
    assert folds(Reads(lambda net, x, raw: raw.shape[0] + raw.size(1) + raw.dim()))


def test_convolution_whose_input_is_written_into_before_its_norm_reads_is_left_alone():
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = thin()

        def forward(self, x):
            x = x * 1
            raw = self.inner.conv(x)
            x += 1
            return self.inner.norm(raw)

    assert not folds(Written())


def test_convolution_whose_output_a_hook_keeps_is_left_alone():
    net, outputs = thin(), []
    net.conv.register_forward_hook(lambda module, given, output: outputs.append(output))

    assert not folds(net)


def test_hooks_on_gradients_see_those_of_torch():
    net, seen = thin(), []
    net.conv.register_full_backward_hook(lambda module, given, gradient: seen.append(gradient[0]))

    gradients(net, batch())
    plain(net, batch())

    assert_close(seen[:1], seen[1:])


def test_weight_that_is_computed_anew_is_left_alone():
    net = network(nn.Conv2d(4, 4, 1))
    parametrizations.weight_norm(net.conv)

    assert not folds(net)


@pytest.mark.parametrize(
    "norm",
    [lambda width: nn.BatchNorm2d(width).train(), lambda width: nn.BatchNorm2d(width, track_running_stats=False)],
)
def test_norm_that_takes_its_statistics_from_the_batch_is_left_alone(norm):
    net = thin()
    net.norm = norm(6)

    with quick_convolutions(net, (batch(),)):
        found = steps(net(batch()))

    assert NORM in found
    assert not folds(net)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3),
        nn.Conv2d(4, 8, 5, groups=4),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 5, groups=4, dilation=2, padding=4),
        nn.Conv2d(4, 4, 5, groups=4, padding="same"),
        nn.Conv2d(4, 4, 5, groups=4, dtype=torch.float64),
    ],
    ids=["dense", "multiplied", "grouped", "dilated", "padding by a word", "float64"],
)
def test_other_convolutions_keep_their_bits(conv):
    net, x = network(conv).to(conv.weight.dtype), batch(side=6).to(conv.weight.dtype)

    found = gradients(net, x)

    assert all(torch.equal(one, other) for one, other in zip(found, plain(net, x), strict=True))


def test_autocast_is_left_alone():
    net, x = thin(), batch()

    with quick_convolutions(net, (x,)), torch.autocast("cpu", torch.bfloat16):
        output = net(x)

    assert output.dtype == torch.bfloat16
    assert OURS not in steps(output)


def test_transforms_of_functions_are_left_alone():
    net, x = nn.Conv2d(4, 4, 5, groups=4), batch(side=7)

    with quick_convolutions(net, (x,)):
        found = torch.func.jacrev(lambda x: net(x).sum())(x)

    torch.testing.assert_close(found, torch.func.jacrev(lambda x: net(x).sum())(x))


def test_live_part_on_another_device_is_not_run():
    net = thin().to("meta")
    net.register_forward_hook(pytest.fail)

    with quick_convolutions(net, (batch(),)):
        pass


def test_live_part_without_kernels_is_not_run():
    net = nn.Sequential(nn.Flatten(), nn.Linear(100, 3))
    net.register_forward_hook(pytest.fail)

    with quick_convolutions(net, (batch(),)):
        assert not torch.overrides._get_current_function_mode_stack()


def test_nothing_is_done_otherwise_outside():
    net, x = thin(), batch()
    with quick_convolutions(net, (x,)):
        net(x)

    assert OURS not in steps(net(x))


# --- what it goes along with ------------------------------------------------------------------


def test_one_weight_under_two_norms_gets_both_gradients():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = thin(), thin()
            self.two.conv.weight = self.one.conv.weight

        def forward(self, x):
            return self.one(x) * self.two(x)

    net = Twice().eval()

    assert folds(net)
    assert_close(gradients(net, batch()), plain(net, batch()))


@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_that_are_recomputed_keep_their_gradients(reentrant):
    class Recomputed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = thin()

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=reentrant)

    net = Recomputed().eval()

    def grads(context):
        net.zero_grad()
        with context:
            loss = net(batch().requires_grad_()).square().sum()
        loss.backward()
        return [parameter.grad.clone() for parameter in net.parameters()]

    assert_close(grads(quick_convolutions(net, (batch(),))), grads(torch.enable_grad()))


@pytest.mark.parametrize("names", [("conv.weight",), ("norm.weight",), ("norm.bias",), ("conv.bias", "norm.weight")])
def test_some_of_the_tensors_may_be_frozen(names):
    net = thin()
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in names)

    assert_close(gradients(net, batch()), plain(net, batch()))


def test_norm_without_weights_is_folded():
    net = network(nn.Conv2d(4, 6, 1, bias=False), norm=lambda width: nn.BatchNorm2d(width, affine=False))

    assert folds(net)
    assert_close(gradients(net, batch()), plain(net, batch()))


def test_what_follows_may_write_into_the_output():
    net = nn.Sequential(thin(), nn.ReLU(inplace=True))

    assert_close(gradients(net, batch()), plain(net, batch()))


def test_each_step_may_have_a_batch_of_its_own_shape():
    net, x = thin(), batch(side=7)
    quick = quick_convolutions(net, (batch(side=5),))

    assert_close(gradients(net, x, context=quick), plain(net, x))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiled_layers_run_as_they_are():
    net = nn.Sequential(thin(), torch.compile(thin(), backend="eager")).eval()
    net[1].conv = nn.Conv2d(6, 6, 1)

    assert_close(gradients(net, batch()), plain(net, batch()))


# --- what must not go unnoticed ---------------------------------------------------------------


def test_second_derivatives_are_refused():
    net, x = thin(), batch().requires_grad_()
    with quick_convolutions(net, (batch(),)):
        (gradient,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)

    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    "also",
    [
        lambda net, x, raw: torch.relu(raw),
        lambda net, x, raw: Halved.apply(raw),
        lambda net, x, raw: torch.cat([x, raw], 1).mean(),
        lambda net, x, raw: torch.nn.functional.batch_norm(raw, None, None, training=True),
    ],
    ids=["relu", "Function", "cat", "norm of the batch"],
)
def test_network_that_takes_another_path_later_is_refused(also):
    net = Reads(lambda net, x, raw: 0)
    quick = quick_convolutions(net, (batch(),))
    net.also = also

    with quick, pytest.raises(PathChanged, match=r"weights \(6, 4, 1, 1\)"):
        net(batch())


def test_input_that_is_written_into_later_is_refused():
    net = Reads(lambda net, x, raw: 0)
    quick = quick_convolutions(net, (batch(),))
    x = batch()
    net.inner.norm.register_forward_pre_hook(lambda *_: bool(x.add_(1).isnan().all()) or None)

    with quick, pytest.raises(PathChanged, match="written into"):
        net(x)


def test_reader_that_torch_does_not_report_finds_no_numbers():
    net = thin()

    with quick_convolutions(net, (batch(),)):
        raw = net.conv(batch())

    with torch._C.DisableTorchFunction():
        assert raw.isnan().all()


def test_watching_leaves_everything_as_it_was():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return F.relu_(x)

    net, x = nn.Sequential(Counts(), thin(), nn.Dropout().train(), nn.BatchNorm2d(6).train()), batch()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()

    quick_convolutions(net, (x,))

    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, batch())
