"""The Trainer of transformers on a BERT of two small layers, made from its configuration."""

import importlib
import sys

import pytest
import torch

import frostline as fl
from frostline.errors import BadArgument, FrozenMoved, MissingExtra

transformers = pytest.importorskip("transformers", reason="needs the extra `test`")
pytest.importorskip("accelerate", reason="needs the extra `test`")

from frostline.integrations.huggingface import Freeze  # noqa: E402

DRAW = torch.Generator().manual_seed(1)
SAMPLES = [
    {"input_ids": torch.randint(1, 30, (6,), generator=DRAW), "labels": torch.randint(3, (), generator=DRAW)}
    for _ in range(16)
]
EXAMPLE = {"input_ids": torch.stack([sample["input_ids"] for sample in SAMPLES[:4]])}


def bert(dropout=0.1):
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(**sizes, **rates, intermediate_size=8, max_position_embeddings=8, num_labels=3)
    )


def trainer(tmp_path, *callbacks, model=None, epochs=1, kind=transformers.Trainer, **options):
    settings = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "learning_rate": 0.01,
        "weight_decay": 0.1,
        "per_device_train_batch_size": 4,
        "dataloader_pin_memory": False,
    }
    making = {"model_init": options.pop("model_init")} if "model_init" in options else {"model": model or bert()}
    optimizers, evaluated = options.pop("optimizers", (None, None)), options.pop("evaluated", SAMPLES)
    arguments = transformers.TrainingArguments(num_train_epochs=epochs, **settings | options)
    return kind(
        args=arguments,
        train_dataset=SAMPLES,
        eval_dataset=evaluated,
        callbacks=list(callbacks),
        optimizers=optimizers,
        **making,
    )


class Depths(transformers.TrainerCallback):
    """Notes the depth of each epoch."""

    def __init__(self):
        self.seen = []

    def on_epoch_begin(self, args, state, control, model, **kwargs):
        self.seen.append(fl.layer_status(model).depth)


class GivenLosses(transformers.Trainer):
    """Evaluates to the given losses, one after the other."""

    losses = (1.0,) * 10

    def evaluation_loop(self, *args, **kwargs):
        output = super().evaluation_loop(*args, **kwargs)
        output.metrics["eval_loss"] = self.losses[round(self.state.epoch or 1) - 1]
        return output


def tensors(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def moved(model, before):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def frozen_names(model, depth):
    return {key for stage in fl.trace(model, EXAMPLE).stages[:depth] for key in stage.keys}


def test_frozen_stages_keep_every_bit_and_the_others_train(tmp_path):
    model = bert()
    before, names = tensors(model), frozen_names(model, 2)

    trainer(tmp_path, Freeze(2, EXAMPLE), model=model).train()

    assert moved(model, before) == set(dict(model.named_parameters())) - names


def test_it_freezes_before_the_optimizer_is_made(tmp_path):
    fit = trainer(tmp_path, Freeze(-1, EXAMPLE))

    fit.train()

    held = {id(weight) for group in fit.optimizer.param_groups for weight in group["params"]}
    assert held == {id(weight) for weight in fit.model.classifier.parameters()}


def test_frozen_stages_stay_in_eval_mode_after_an_evaluation(tmp_path):
    modes = []

    class Watched(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            modes.append((model.bert.embeddings.dropout.training, model.dropout.training))

    trainer(tmp_path, Freeze(2, EXAMPLE), Watched(), epochs=3, eval_strategy="epoch").train()

    assert set(modes) == {(False, True)}


def test_a_callback_that_is_added_later_freezes_too(tmp_path):
    model = bert()
    before, names = tensors(model), frozen_names(model, 2)
    fit = trainer(tmp_path, model=model)

    fit.add_callback(Freeze(2, EXAMPLE))
    fit.train()

    assert moved(model, before) == set(dict(model.named_parameters())) - names


def test_a_model_that_is_made_anew_for_the_training_is_frozen(tmp_path):
    fit = trainer(tmp_path, Freeze(2, EXAMPLE), model_init=lambda: bert())

    fit.train()

    assert fl.layer_status(fit.model).depth == 2
    assert moved(fit.model, tensors(bert())) == set(dict(fit.model.named_parameters())) - frozen_names(bert(), 2)


class Meddling(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, model, **kwargs):
        with torch.no_grad():
            model.bert.embeddings.word_embeddings.weight.add_(1)


def test_a_stage_that_moved_is_named_at_the_end(tmp_path):
    with pytest.raises(FrozenMoved, match="word_embeddings"):
        trainer(tmp_path, Freeze(2, EXAMPLE), Meddling()).train()


def test_a_stage_that_moved_can_be_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="word_embeddings"):
        trainer(tmp_path, Freeze(2, EXAMPLE, verify="warn"), Meddling()).train()


def test_schedule_by_epochs_thaws_at_those_epochs(tmp_path):
    depths = Depths()

    trainer(tmp_path, Freeze(-1, EXAMPLE, schedule={1: 1, 3: 0}), depths, epochs=4).train()

    assert depths.seen == [fl.trace(bert(), EXAMPLE).max_depth, 1, 1, 0]


def test_thawed_stages_train_with_the_optimizer_of_the_trainer(tmp_path):
    model = bert()
    before, names = tensors(model), frozen_names(model, 1)

    trainer(tmp_path, Freeze(-1, EXAMPLE, schedule={1: 1}), model=model, epochs=2).train()

    assert moved(model, before) == set(dict(model.named_parameters())) - names


def test_schedule_by_patience_thaws_when_the_evaluation_loss_stalls(tmp_path):
    class Stalling(GivenLosses):
        losses = (1.0, 0.9, 0.9, 0.9, 0.5, 0.4)

    depths = Depths()
    freeze = Freeze(2, EXAMPLE, schedule=(1, 0), patience=2)

    trainer(tmp_path, freeze, depths, epochs=6, kind=Stalling, eval_strategy="epoch").train()

    assert depths.seen == [2, 2, 2, 2, 1, 1]


def test_an_evaluation_outside_the_training_does_not_count(tmp_path):
    freeze = Freeze(2, EXAMPLE, schedule=(1,), patience=1)
    fit = trainer(tmp_path, freeze, kind=GivenLosses, eval_strategy="epoch")
    fit.train()

    fit.evaluate()

    assert fl.layer_status(fit.model).depth == 2


def test_a_loss_that_no_evaluation_gave_is_refused_with_the_names_that_were(tmp_path):
    freeze = Freeze(2, EXAMPLE, schedule=(1,), patience=1, monitor="loss")

    with pytest.raises(BadArgument, match=r"`loss`.*'eval_loss'"):
        trainer(tmp_path, freeze, eval_strategy="epoch").train()


def test_the_loss_of_one_of_several_evaluation_sets_can_be_waited_for(tmp_path):
    depths = Depths()
    freeze = Freeze(2, EXAMPLE, schedule=(1,), patience=1, monitor="eval_two_loss")
    sets = {"one": SAMPLES[:8], "two": SAMPLES[8:]}

    class Stalling(GivenLosses):
        def evaluation_loop(self, *args, metric_key_prefix, **kwargs):
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            output.metrics[f"{metric_key_prefix}_loss"] = output.metrics.pop("eval_loss")
            return output

    trainer(tmp_path, freeze, depths, epochs=3, kind=Stalling, evaluated=sets, eval_strategy="epoch").train()

    assert depths.seen == [2, 2, 1]


def test_each_training_begins_the_schedule_anew(tmp_path):
    depths = Depths()
    fit = trainer(tmp_path, Freeze(2, EXAMPLE, schedule={1: 0}), depths, epochs=2)

    fit.train()
    fit.train()

    assert depths.seen == [2, 0, 2, 0]


def test_patience_without_evaluations_is_refused_when_the_trainer_is_made(tmp_path):
    with pytest.raises(BadArgument, match="`eval_strategy` is 'no'"):
        trainer(tmp_path, Freeze(2, EXAMPLE, schedule=(1,), patience=1))


def test_a_schedule_whose_stages_no_optimizer_holds_is_refused(tmp_path):
    model = bert()
    optimizer = torch.optim.SGD(model.classifier.parameters(), lr=0.1)

    fit = trainer(tmp_path, Freeze(-1, EXAMPLE, schedule={1: 1}), model=model, optimizers=(optimizer, None))
    with pytest.raises(BadArgument, match="no optimizer holds"):
        fit.train()


WAYS = {
    "epochs": {"schedule": {1: 2, 2: 1, 3: 0}},
    "patience": {"schedule": (2, 1, 0), "patience": 1},
    "one depth": {},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_training_ends_with_the_bits_of_an_unbroken_one(tmp_path, way):
    def fit(checkpoint=None):
        depths = Depths()
        freeze = Freeze(3, EXAMPLE, **WAYS[way])
        options = {"save_strategy": "epoch", "eval_strategy": "epoch"}
        made = trainer(tmp_path, freeze, depths, model=bert(dropout=0), epochs=5, kind=GivenLosses, **options)
        made.train(resume_from_checkpoint=checkpoint)
        return made.model, depths.seen

    unbroken, depths = fit()
    resumed, later_depths = fit(str(tmp_path / "checkpoint-12"))

    assert moved(resumed, tensors(unbroken)) == set()
    assert later_depths == depths[3:]


def test_a_schedule_for_several_processes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.TrainingArguments, "world_size", 2)

    with pytest.raises(BadArgument, match="2 processes"):
        trainer(tmp_path, Freeze(2, EXAMPLE, schedule={1: 0}))


def test_without_transformers_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "frostline.integrations.huggingface")
    monkeypatch.setitem(sys.modules, "transformers", None)

    with pytest.raises(MissingExtra, match=r"pip install 'frostline\[transformers\]'"):
        importlib.import_module("frostline.integrations.huggingface")
