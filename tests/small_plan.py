"""A plan of one depth and a graph of three stages, as the command line shows them."""

from frostline.records import Budget, Cut, CutGraph, EngineReport, Forecast, Plan, Rates, Recipe, Stage

PLAN = Plan(
    budget=Budget(limit=1.0, reserve=0.1, epochs=10, race_epochs=1, live_shares=(1.0, 0.4)),
    rates=Rates(
        step_seconds=0.1,
        step_low=0.1,
        step_high=0.2,
        stage_seconds=(0.6, 0.4),
        score_seconds=0.01,
        engine=EngineReport(engine="torch", why="openvino is not installed"),
        threads=2,
        torch="2.14",
    ),
    recipe=Recipe(),
    candidates=(0, 1),
    learning_rates=(1e-3,),
    forecasts=(
        Forecast(
            depth=1,
            stage_name="layer[red]",
            parameters=1234,
            store_bytes=5_000_000,
            store_seconds=3.0,
            train_seconds=125.0,
            full_finetunes=0.42,
            accuracy=0.875,
            is_candidate=True,
        ),
    ),
    seconds=200.0,
    store_bytes=5_000_000,
    full_finetune_seconds=300.0,
    seed=0,
    notes=("few samples",),
)

GRAPH = CutGraph(
    model="Tiny",
    batch=2,
    stages=(
        Stage(index=0, name="stem", keys=("stem.weight",), parameters=100, flops=750),
        Stage(index=1, name="middle", keys=("middle.weight",), parameters=10, flops=150),
        Stage(index=2, name="head", keys=("head.weight",), parameters=20, flops=100),
    ),
    cuts=(
        Cut(depth=0, name="", wires=(), bytes_per_sample=3072),
        Cut(depth=1, name="stem", wires=(), bytes_per_sample=2048),
        Cut(depth=2, name="middle", wires=(), bytes_per_sample=64, blocked="tied: `stem.weight`"),
    ),
)
