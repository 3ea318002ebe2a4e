"""What runs on a GPU: rows on their way, steps and their bits, a whole run. Deselected by default: `-m gpu`."""

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.attempts import Outcome
from frostline.carrying import Carrier
from frostline.cost import step_seconds
from frostline.engines import compiled
from frostline.files import read_records
from frostline.records import Recipe, TrialSpec
from frostline.redrawing import redrawn
from frostline.run import has_bfloat16
from frostline.testing import CLOSE, ROUGH, SAME

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
]

GPU = torch.device("cuda", 0)
PROCESSOR = torch.device("cpu")
SAMPLES = 96

NETWORK = """
import torch
from torch import nn

def make(num_classes):
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes),
    )
"""


@pytest.fixture(autouse=True)
def all_bits_of_float32():
    """Without TF32, in which a GPU would multiply float32 with the ten bits of float16."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def network(device=PROCESSOR, dropout=0.0):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(16, 2),
        )  # fmt: skip
    return net.to(device, memory_format=torch.channels_last)


def part(seed=0, samples=SAMPLES):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (samples,), generator=generator)
    inputs = torch.randn(samples, 3, 12, 12, generator=generator) + labels[:, None, None, None]
    return fl.TensorSamples(inputs.contiguous(memory_format=torch.channels_last), labels)


def spec_of(epochs=3.0, *, parent=None, first_epoch=0.0, **recipe):
    given = {"learning_rate": 3e-3, "head_learning_rate": 3e-3, "schedule": "constant", "batch_size": 16, **recipe}
    return TrialSpec(depth=0, recipe=Recipe(**given), seed=0, epochs=epochs, parent=parent, first_epoch=first_epoch)


def trained(folder, device, spec, *, start=None, dropout=0.0):
    net, train, valid = network(device, dropout), part(0), part(1)
    labels = {"train_labels": train.labels, "valid_labels": valid.labels}
    file = folder / f"{device.type}-{spec.key}.safetensors"
    return fl.tune(net, train, valid, **labels, spec=spec, head="8", save_to=file, start=start), net


def losses(trial, curve="train_loss"):
    return torch.tensor([getattr(point, curve) for point in trial.curve if getattr(point, curve) is not None])


# --- rows on their way ------------------------------------------------------------------------


def test_rows_arrive_as_they_were_read():
    x = part().read(range(8))[0]
    reads = [lambda number=number: (x + number, torch.tensor([number])) for number in range(20)]

    with Carrier(GPU).ahead(reads) as given:
        arrived = [read() for read in given]

    for number, (wire, labels) in enumerate(arrived):
        assert wire.device == labels.device == GPU
        assert wire.stride() == x.stride()
        torch.testing.assert_close(wire.cpu(), x + number, **SAME)


def test_rows_that_are_on_the_gpu_already_are_taken_as_they_are():
    x = torch.arange(64.0, device=GPU).reshape(4, 16)

    with Carrier(GPU).ahead([lambda row=row: (x[row] * 2,) for row in range(4)]) as given:
        arrived = [read()[0] for read in given]

    torch.testing.assert_close(torch.stack(arrived), x * 2, **SAME)


def test_memory_of_a_batch_is_not_used_again_while_a_step_works_on_it():
    carrier, sums = Carrier(GPU), []

    with carrier.ahead([lambda value=value: (torch.full((1 << 20,), float(value)),) for value in range(30)]) as given:
        for read in given:
            (batch,) = read()
            # About a hundredth of a second, in which later batches are on their way.
            torch.cuda._sleep(20_000_000)
            sums.append(batch.mean())
            del batch

    assert [float(mean) for mean in sums] == [float(value) for value in range(30)]


def test_rows_are_copied_without_waiting_for_what_the_gpu_does():
    carrier = Carrier(GPU)
    reads = [lambda: (torch.ones(1 << 16),)] * 2
    with carrier.ahead(reads) as given:
        # Memory that is asked of the driver for the first time may make it wait.
        warm = [read() for read in given]
    torch.cuda.synchronize()
    del warm

    torch.cuda._sleep(4_000_000_000)
    busy = torch.cuda.current_stream().record_event()
    with carrier.ahead(reads) as given:
        arrived = [read()[0] for read in given]
        was_busy = not busy.query()

    assert was_busy
    assert [float(batch.sum()) for batch in arrived] == [1 << 16] * 2


def test_rows_leave_from_pinned_memory(monkeypatch):
    sent, move = [], torch.Tensor.to

    def watched(tensor, *args, **more):
        if tensor.device.type == "cpu" and args[:1] == (GPU,):
            sent.append((tensor.is_pinned(), more.get("non_blocking", False)))
        return move(tensor, *args, **more)

    with monkeypatch.context() as patch, Carrier(GPU).ahead([lambda: (torch.ones(4), torch.zeros(4))] * 3) as given:
        patch.setattr(torch.Tensor, "to", watched)
        for read in given:
            read()

    assert sent == [(True, True)] * 6


# --- training ---------------------------------------------------------------------------------


def test_the_first_step_is_that_of_a_processor(tmp_path):
    spec = spec_of(16 / SAMPLES)

    (here, _), (there, _) = (trained(tmp_path, device, spec) for device in (GPU, PROCESSOR))

    for curve in ("valid_loss", "train_loss", "gradient_norm"):
        torch.testing.assert_close(losses(here, curve), losses(there, curve), **CLOSE)


def test_training_learns_as_on_a_processor(tmp_path):
    (here, net), (there, _) = (trained(tmp_path, device, spec_of(averaging=0.9)) for device in (GPU, PROCESSOR))

    assert here.failure is None
    assert {weight.device for weight in net.parameters()} == {GPU}
    assert losses(here)[-1] < losses(here)[0]
    assert losses(here, "valid_loss")[-1] < losses(here, "valid_loss")[0]
    torch.testing.assert_close(losses(here), losses(there), **ROUGH)


def test_two_rungs_through_files_are_one_rung(tmp_path):
    whole, _ = trained(tmp_path, GPU, spec_of(2))

    parent, _ = trained(tmp_path, GPU, spec_of(1))
    spec = spec_of(1, parent=parent.spec.key, first_epoch=1)
    child, _ = trained(tmp_path, GPU, spec, start=tmp_path / parent.weights)

    torch.testing.assert_close(torch.cat([losses(parent), losses(child)]), losses(whole), **CLOSE)


def test_a_training_leaves_the_random_state_of_the_gpu_alone_and_repeats_its_dropout(tmp_path):
    before = torch.cuda.get_rng_state(GPU)

    once, _ = trained(tmp_path, GPU, spec_of(1), dropout=0.5)
    torch.rand(7, device=GPU)
    again, _ = trained(tmp_path, GPU, spec_of(1), dropout=0.5)

    torch.testing.assert_close(losses(again), losses(once), **CLOSE)
    torch.cuda.set_rng_state(before, GPU)
    trained(tmp_path, GPU, spec_of(1), dropout=0.5)
    assert torch.equal(torch.cuda.get_rng_state(GPU), before)


def test_training_in_bfloat16_is_near_to_float32(tmp_path):
    if not has_bfloat16(GPU):
        pytest.skip("this GPU does not compute in bfloat16")
    (fewer, net), (full, _) = (trained(tmp_path, GPU, spec_of(precision=bits)) for bits in ("bfloat16", "float32"))

    assert {weight.dtype for weight in net.parameters()} == {torch.float32}
    assert losses(fewer).tolist() != losses(full).tolist()
    torch.testing.assert_close(losses(fewer), losses(full), **ROUGH)
    torch.testing.assert_close(losses(fewer, "valid_loss"), losses(full, "valid_loss"), **ROUGH)


def test_a_step_is_timed_to_its_end():
    median, _, _ = step_seconds(lambda: torch.cuda._sleep(100_000_000), device=GPU)

    # A GPU's clock ticks at 4 GHz at most, and asking for the step takes some microseconds.
    assert median > 100_000_000 / 4e9


# --- cuts and stores --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["convolutions", "attention"])
def test_cuts_are_proven_on_a_gpu(kind):
    if kind == "convolutions":
        net, x = network(GPU), part().read(range(4))[0].to(GPU)
    else:
        blocks = [nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True) for _ in range(3)]
        net, x = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(80, 2)).to(GPU), torch.randn(4, 5, 16, device=GPU)
    graph = fl.trace(net, x)

    assert len(graph.open_depths) > 2
    assert {depth: fl.prove(net, graph, depth, example=x) for depth in graph.open_depths if depth} == {
        depth: None for depth in graph.open_depths if depth
    }


def test_rows_computed_on_a_gpu_are_kept_and_read_on_the_processor(tmp_path):
    samples, stores = part(), []
    for device in (GPU, PROCESSOR):
        net = network(device).eval()
        frozen = fl.split(net, fl.trace(net, samples.read([0, 1])[0].to(device)), 1).frozen
        stores.append(fl.cache(frozen, samples, tmp_path / device.type, engine="torch"))

    (here,), (there,) = (store.read(range(SAMPLES)) for store in stores)

    assert here.device == PROCESSOR
    assert here.stride() == there.stride()
    torch.testing.assert_close(here, there, **CLOSE)


def test_an_engine_fills_a_batch_up_on_the_gpu_and_gives_outputs_on_the_processor():
    net, x = network(GPU).eval(), part().read(range(16))[0]
    run = compiled(net, (x,))

    (from_there,), (from_here,) = run((x[:5].to(GPU),)), run((x[:5],))

    assert from_there.device == from_here.device == PROCESSOR
    torch.testing.assert_close(from_there, from_here, **SAME)
    with torch.no_grad():
        torch.testing.assert_close(from_here, net(x.to(GPU))[:5].cpu(), **CLOSE)


def test_a_store_says_why_torch_has_filled_it(tmp_path):
    net = network(GPU).eval()
    frozen = fl.split(net, fl.trace(net, part().read([0, 1])[0].to(GPU)), 1).frozen

    store = fl.cache(frozen, part(), tmp_path / "store", engine="compile")

    assert store.manifest.engine == "torch"
    assert "the network is on cuda:0" in store.manifest.why


def test_weights_drawn_anew_are_the_same_as_on_a_processor():
    drawn = []
    for device in (GPU, PROCESSOR):
        net = network(device).eval()
        stages = fl.trace(net, part().read([0, 1])[0].to(device)).stages
        drawn.append(redrawn(net, stages[:1], seed=3, batches=[part().read(range(16))]))

    here, there = drawn

    assert next(here.parameters()).device == GPU
    for name, tensor in there.state_dict().items():
        torch.testing.assert_close(here.state_dict()[name].cpu(), tensor, **SAME)


# --- a whole run ------------------------------------------------------------------------------


def test_a_network_on_a_gpu_is_fitted_there_and_comes_back_there(tmp_path):
    net = network(GPU, dropout=0.1)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    result = fl.fit(fl.Task(net, part(0), part(1), part(2)), epochs=4, budget=4.0, out=tmp_path / "run")

    rates = result.evidence.plan.rates
    assert (rates.engine.engine, {trial.failure for trial in result.evidence.trials}) == ("torch", {None})
    assert "the network is on cuda:0" in rates.engine.why
    assert result.test.accuracy > 0.9
    assert result.evidence.disagreement < 0.05
    assert {tensor.device for tensor in result.model.state_dict().values()} == {GPU}
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    with torch.no_grad():
        outputs = result.model(part(2).read(range(SAMPLES))[0].to(GPU)).cpu()
    assert fl.score(outputs, part(2).labels).accuracy == pytest.approx(result.test.accuracy, abs=0.02)


def test_pictures_are_fitted_on_a_gpu(tmp_path, photos):
    (tmp_path / "nets.py").write_text(NETWORK)
    task = fl.load_task(photos, model=f"{tmp_path / 'nets.py'}:make", image_size=24)
    task.model.to(GPU)

    result = fl.fit(task, depth=1, epochs=2, out=tmp_path / "run")

    assert {trial.failure for trial in result.evidence.trials} == {None}
    assert {weight.device for weight in result.model.parameters()} == {GPU}


def test_the_evidence_can_be_asked_of_a_run_on_a_gpu(tmp_path):
    task = fl.Task(network(GPU), part(0), part(1), part(2))
    result = fl.fit(task, depth=1, epochs=2, out=tmp_path / "run")

    fl.evidence(result, claims=["reuse", "resources"], seeds=2, budget=60.0, task=task)

    tried = read_records(result.folder / "attempts.jsonl", Outcome)
    assert {outcome.attempt.kind for outcome in tried} == {"train", "probe", "memory"}
    assert {outcome.failure for outcome in tried} == {None}
