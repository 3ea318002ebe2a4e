import math
import random

import pytest

from frostline.records import (
    Budget,
    Choice,
    Cost,
    Cut,
    CutGraph,
    DataSummary,
    Delta,
    Doubt,
    EngineReport,
    EpochPoint,
    Evidence,
    Forecast,
    ModelSource,
    Plan,
    Preprocessing,
    Prior,
    Rates,
    Recipe,
    Rival,
    Score,
    Stage,
    Trial,
    TrialSpec,
    Vote,
    Wire,
)

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIGN_DIGITS = tuple(f"digit {name}" for name in NUMBERS)


@pytest.fixture(scope="session")
def fake_evidence():
    """Make an Evidence such as a real run leaves: EfficientNet-Lite0 of 19 stages, seven trials."""
    return make_evidence


def make_evidence(classes=SIGN_DIGITS, *, depth=7, failed=True, seed=0, stages=19):
    draw = random.Random(seed)
    graph = make_graph(stages, len(classes))
    race_depths = sorted({graph.max_depth, round(graph.max_depth * 0.77), depth, max(0, depth // 3)})
    test, valid = (make_score(len(classes), 400, accuracy, draw) for accuracy in (0.972, 0.981))
    trials = make_trials(race_depths, depth, 400, draw, failed=failed)
    chosen = next(trial for trial in trials if trial.spec.depth == depth and trial.spec.parent)
    counts = tuple((draw.randint(100, 128), draw.randint(35, 45), draw.randint(35, 45)) for _ in classes)
    return Evidence(
        frostline="0.1.0.dev0",
        created="2026-03-02T14:21:07+01:00",
        machine=(
            ("processor", "AMD EPYC 9R14"),
            ("cores", "2"),
            ("memory", "22.9 GiB"),
            ("system", "Linux 6.8.0 x86_64"),
            ("python", "3.11.7"),
            ("threads of torch", "2"),
            ("torch", "2.14.1"),
            ("timm", "1.0.31"),
            ("openvino", "2026.1.0"),
        ),
        arguments=(
            ("task", "5f2c9c0e5e0d4b7a8f00c1d2e3f4a5b6"),
            ("depth", "auto"),
            ("budget", "1.0"),
            ("epochs", "10"),
            ("views", "1"),
            ("seed", "0"),
            ("engine", "auto"),
        ),
        data=DataSummary(
            name="photos/sign digits",
            classes=tuple(classes),
            counts=counts,
            duplicates=(("digit three/IMG_1208.JPG", "digit three/IMG_1208 copy.JPG"), ("a.png", "b.png", "c.png")),
            conflicts=(("a.png", "b.png", "c.png"),),
            skipped=(("digit nine/IMG_2201.JPG", "image file is truncated (12 bytes not processed)"),),
        ),
        source=ModelSource(name="efficientnet_lite0", outputs=len(classes), fingerprint="a4c1e2b39d7f"),
        preprocessing=Preprocessing(image_size=96, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        graph=graph,
        prior=make_prior(graph, draw),
        plan=make_plan(graph, race_depths, draw),
        trials=trials,
        choice=make_choice(graph, depth, race_depths, chosen, valid, draw),
        valid=valid,
        test=test,
        disagreement=0.0,
        delta=Delta(
            file="runs/sign-digits-3f9c/delta.safetensors",
            depth=depth,
            base="9e107d9d372bb6826bd81d3542a419d6",
            keys=tuple(key for stage in graph.stages[depth:] for key in stage.keys),
            bytes=16_204_112,
        ),
        cost=Cost(
            seconds=141.3,
            flops=2.41e13,
            full_finetune_seconds=228.9,
            full_finetune_flops=4.3e13,
            by_phase=(
                ("read", 6.42),
                ("trace", 0.41),
                ("compile", 9.7),
                ("probe", 6.9),
                ("measure", 4.4),
                ("prove", 2.3),
                ("store", 12.1),
                ("train", 112.4),
                ("test", 2.79),
            ),
        ),
        parameters_live=sum(stage.parameters for stage in graph.stages[depth:]),
    )


def make_graph(stages, outputs):
    blocks = (1, 2, 2, 3, 3, 4, 1)
    names = ["conv_stem", *(f"blocks.{i}.{j}" for i, count in enumerate(blocks) for j in range(count)), "conv_head"]
    names = [*names[: stages - 1], *(f"more.{k}" for k in range(max(0, stages - 1 - len(names)))), "classifier"]
    size, records, cuts = 48, [], []
    for index, name in enumerate(names):
        width = 16 + 14 * index
        parameters = 1280 * outputs if name == "classifier" else 900 + index * index * 1450
        flops = parameters if name == "classifier" else int(9e6 * (1 + 0.7 * math.sin(index * 1.7)))
        records.append(Stage(index=index, name=name, keys=(f"{name}.weight",), parameters=parameters, flops=flops))
        wire = Wire(
            name=name,
            shape=(4, width, size, size),
            dtype="float32",
            order=(0, 2, 3, 1),
            bytes_per_sample=4 * width * size * size,
        )
        blocked = "`stem.weight` is read in stage 2 and in stage 9, where it is the same tensor" if index == 2 else None
        if index < len(names) - 1:
            cuts.append(
                Cut(
                    depth=index + 1,
                    name=name,
                    wires=(wire,),
                    bytes_per_sample=wire.bytes_per_sample,
                    blocked=blocked,
                )
            )
        size = max(3, size // 2) if index in (1, 3, 5, 11) else size
    picture = Wire(name="input", shape=(4, 3, 96, 96), dtype="float32", order=(0, 1, 2, 3), bytes_per_sample=110_592)
    nothing = Cut(depth=0, name="", wires=(picture,), bytes_per_sample=110_592)
    return CutGraph(
        model="EfficientNet",
        batch=4,
        stages=tuple(records),
        cuts=(nothing, *cuts),
        head="classifier",
        outputs=outputs,
    )


def make_prior(graph, draw):
    votes = []
    for depth in graph.open_depths[1:]:
        accuracy = (
            0.55 + 0.31 * math.sin(min(1.0, depth / (0.8 * graph.max_depth)) * math.pi / 2) + draw.gauss(0, 0.006)
        )
        votes.append(
            Vote(
                depth=depth,
                accuracy=accuracy,
                low=accuracy - 0.021,
                high=accuracy + 0.019,
                loss=1.6 - accuracy,
                penalty=0.1,
                features=64,
            )
        )
    doubts = tuple(Doubt(sample=row, label=0, prediction=1, confidence=0.97) for row in (41, 17))
    return Prior(votes=tuple(votes), samples=1236, head="warm.safetensors", temperature=3.1, doubts=doubts)


def make_plan(graph, race_depths, draw):
    forecasts = []
    for depth in graph.open_depths:
        live = 1 - graph.frozen_share(depth)
        store = 0.0 if depth == 0 else 2.0 + 6 * (1 - live)
        forecasts.append(
            Forecast(
                depth=depth,
                stage_name=graph.stage_name(depth),
                parameters=sum(stage.parameters for stage in graph.stages[depth:]),
                store_bytes=0 if depth == 0 else 1648 * graph.cuts[depth].bytes_per_sample,
                store_seconds=store,
                train_seconds=229 * live,
                full_finetunes=(store + 229 * live) / 229,
                accuracy=None,
                is_candidate=depth in race_depths,
            )
        )
    rates = Rates(
        step_seconds=0.587,
        step_low=0.561,
        step_high=0.642,
        stage_seconds=tuple(stage.flops / graph.flops for stage in graph.stages),
        score_seconds=0.004,
        engine=EngineReport(
            engine="openvino",
            why="1,240 rows a second against 152 with torch",
            rows_per_second=1240.0,
            error=8e-7,
        ),
        threads=2,
        torch="2.14.1",
    )
    return Plan(
        budget=Budget(
            limit=1.0,
            reserve=0.08,
            epochs=10,
            race_epochs=1,
            live_shares=tuple(1 - graph.frozen_share(depth) for depth in range(graph.max_depth + 1)),
        ),
        rates=rates,
        recipe=Recipe(),
        candidates=tuple(race_depths),
        learning_rates=(3e-4, 1e-3),
        forecasts=tuple(forecasts),
        seconds=168.0,
        store_bytes=412_000_000,
        full_finetune_seconds=228.9,
        seed=0,
        notes=("38 of 412 validation pictures come from classes with fewer than 40 pictures.",),
    )


def make_trials(race_depths, depth, samples, draw, *, failed):
    def curve(at, first, epochs):
        goal = 0.14 if at == depth else 0.2 + 0.015 * abs(at - depth)
        points = []
        for epoch in range(round(first), round(first + epochs) + 1):
            if epoch == first and first:
                continue
            valid = goal + (0.7 - goal) * math.exp(-0.55 * epoch) + draw.gauss(0, 0.006)
            train = None if epoch == 0 else valid * math.exp(-0.12 * epoch)
            points.append(
                EpochPoint(
                    epoch=epoch,
                    train_loss=train,
                    valid_loss=valid,
                    valid_accuracy=min(1.0, 0.995 - 0.22 * valid),
                    learning_rate=1e-3,
                    seconds=9.1,
                )
            )
        return tuple(points)

    def trial(at, epochs, rate=1e-3, parent=None, failure=None):
        recipe = Recipe(learning_rate=rate, schedule="cosine" if parent else "constant")
        first = round(parent.spec.epochs) if parent else 0
        spec = TrialSpec(
            depth=at,
            recipe=recipe,
            seed=0,
            epochs=epochs,
            parent=parent.spec.key if parent else None,
            first_epoch=first,
        )
        points = curve(at, first, epochs)
        if failure:
            points = (points[0], points[1].model_copy(update={"train_loss": math.nan, "valid_loss": math.nan}))
        return Trial(
            spec=spec,
            curve=points,
            best_epoch=points[-1].epoch,
            losses=tuple(abs(draw.gauss(points[-1].valid_loss, 0.1)) for _ in range(samples)),
            hits=tuple(draw.random() < points[-1].valid_accuracy for _ in range(samples)),
            seconds=9.3 * epochs,
            flops=1.2e12 * epochs,
            weights=f"{spec.key}.safetensors",
            failure=failure,
        )

    raced = [trial(at, 2) for at in race_depths]
    parent = next(one for one in raced if one.spec.depth == depth)
    trials = [*raced, trial(depth, 1, rate=3e-4), trial(depth, 8, parent=parent)]
    if failed:
        trials.append(trial(depth, 1, rate=1e-1, failure="loss was NaN in epoch 1"))
    return tuple(trials)


def make_score(outputs, samples, accuracy, draw):
    confusion = [[0] * outputs for _ in range(outputs)]
    labels = [k % outputs for k in range(samples)]
    predictions = []
    for label in labels:
        is_right = draw.random() < accuracy
        guess = label if is_right else (label + draw.choice((1, 1, 1, outputs // 2 or 1))) % outputs
        confusion[label][guess] += 1
        predictions.append(guess)
    hits = sum(confusion[k][k] for k in range(outputs))
    share = hits / samples
    centre, half = (share + 0.0048) / 1.0096, 1.96 * math.sqrt(share * (1 - share) / samples + 2.4e-5) / 1.0096
    confidences = tuple(draw.uniform(0.6, 1) for _ in range(samples))
    odds = zip(labels, predictions, confidences, strict=True)
    return Score(
        samples=samples,
        accuracy=share,
        low=centre - half,
        high=min(1.0, centre + half),
        balanced_accuracy=share - 0.002,
        loss=0.11,
        confusion=tuple(map(tuple, confusion)),
        losses=tuple(-math.log(odd if label == guess else 1 - odd) for label, guess, odd in odds),
        predictions=tuple(predictions),
        confidences=confidences,
    )


def make_choice(graph, depth, race_depths, chosen, valid, draw):
    rivals = []
    for at in race_depths:
        if at == depth:
            continue
        accuracy = valid.accuracy - 0.006 - 0.009 * abs(at - depth) ** 1.1
        rivals.append(
            Rival(
                depth=at,
                stage_name=graph.stage_name(at),
                epochs=2,
                accuracy=accuracy,
                low=accuracy - 0.022,
                high=min(1.0, accuracy + 0.018),
                loss=0.2,
                loss_difference=0.02 * abs(at - depth),
                standard_error=0.011,
                verdict="worse, and dearer" if at < depth else "worse by more than one standard error",
            )
        )
    return Choice(
        depth=depth,
        stage_name=graph.stage_name(depth),
        max_depth=graph.max_depth,
        trial=chosen.spec.key,
        rule=(
            "Lowest validation loss after the race; among depths within one standard error of it (paired by sample), "
            "the one that freezes most."
        ),
        reason=(
            f"Freezing {depth} stages gave the lowest validation loss of the {len(race_depths)} depths that were "
            "trained, and no deeper one came within one standard error of it."
        ),
        rivals=tuple(rivals),
    )
