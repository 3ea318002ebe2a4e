"""Made-up exhibits: the six claims with every verdict, and albums of drawn pictures, of texts and of sounds."""

import base64
import io
import math

from PIL import Image, ImageDraw

from frostline.exhibits import Album, Channel, Claim, Crop, Mistake, Panel, Series, Sight

SAMPLES = (154, 309, 618, 1236)


def line(name, x, y, half=0.02):
    return Series(
        name=name, x=tuple(x), y=tuple(y), low=tuple(at - half for at in y), high=tuple(at + half for at in y)
    )


def six_claims(name="blocks.3.0"):
    """One claim of each verdict at least; `name` stands wherever a name of the user's own can."""
    return (
        Claim(
            name="reuse",
            verdict="holds",
            sentence=f"Frozen up to {name} the pretrained features are worth 31 points more than random ones.",
            measure="test accuracy with pretrained stages below, less the better of two random ones",
            value=31.2,
            low=28.1,
            high=34.3,
            unit="points",
            control="Random stages, and random ones of the same mean and spread: they reach .641 and .655.",
            facts=((f"pretrained up to {name}", ".967"), ("random", ".641"), ("random, matched", ".655")),
            panels=(probes(name), similarities()),
            cost=3.2,
        ),
        Claim(
            name="data",
            verdict="holds",
            sentence="Full fine-tuning needs 2.1 times as many samples to be as accurate as the frozen network.",
            measure="samples that full fine-tuning needs, over those of the frozen network",
            value=2.14,
            low=1.62,
            high=math.inf,
            unit="times",
            control="Full fine-tuning with a tuned rate and the best of its epochs.",
            facts=(("sizes", "154, 309, 618, 1,236"),),
            panels=(data_curves(),),
            cost=8.4,
        ),
        Claim(
            name="convergence",
            verdict="does not hold",
            sentence="The frozen network gets to the common target with about as much work.",
            measure="operations to the common target, full over frozen",
            value=1.02,
            low=0.97,
            high=1.07,
            unit="times",
            control="Full fine-tuning at its best rate, the frozen part's pass counted.",
            panels=(convergence(),),
            cost=0.0,
        ),
        Claim(
            name="stability",
            verdict="not decided",
            sentence="Three seeds are too few: eleven would decide it if the ratio stays.",
            measure="spread of test accuracy over seeds, full over frozen",
            value=1.4,
            low=0.22,
            high=8.7,
            unit="times",
            control="Full fine-tuning at a third of its rate.",
            cost=3.0,
        ),
        Claim(
            name="regularisation",
            verdict="not decided",
            sentence="A fifth of wrong labels costs both about as much.",
            measure="loss of accuracy by wrong labels, full less frozen",
            value=-1.3,
            low=-3.9,
            high=1.4,
            unit="points",
            control="Full fine-tuning with ten times the weight decay.",
            panels=(noise(),),
            cost=4.1,
        ),
        Claim(
            name="resources", verdict="not measured", sentence="The budget of 20 full fine-tunes was spent before it."
        ),
    )


def probes(name):
    depths = range(1, 19)
    return Panel(
        title="What a linear probe makes of each stage",
        x_name="number of frozen stages",
        y_name="accuracy",
        series=(
            line(f"pretrained {name}", depths, [0.5 + 0.4 * math.sin(depth / 12) for depth in depths]),
            line("random", depths, [0.45 + 0.01 * depth % 0.1 for depth in depths]),
            line("random, matched", depths, [0.5 + 0.005 * depth for depth in depths]),
            line("trained from there", (7,), (0.93,)),
        ),
        is_share=True,
    )


def similarities():
    stages = range(1, 20)
    return Panel(
        title="How far full fine-tuning moves each stage",
        x_name="stage",
        y_name="similarity (CKA)",
        series=(Series(name="full fine-tuning", x=tuple(stages), y=tuple(1 - (at / 25) ** 2 for at in stages)),),
    )


def data_curves():
    return Panel(
        title="Accuracy by number of training samples",
        x_name="training samples",
        y_name="test accuracy",
        series=(
            line("7 stages frozen", SAMPLES, (0.81, 0.9, 0.955, 0.984)),
            line("nothing frozen", SAMPLES, (0.69, 0.83, 0.93, 0.979)),
            line("head only", SAMPLES, (0.78, 0.82, 0.85, 0.865)),
        ),
        is_share=True,
        is_log=True,
    )


def convergence():
    steps = [2.41e12 * step for step in range(11)]
    return Panel(
        title="Accuracy by work",
        x_name="counted operations",
        y_name="validation accuracy",
        series=(
            line("7 stages frozen", [0.5 * step for step in steps], [0.98 - 0.2 * 0.6**k for k in range(11)], 0.01),
            line("nothing frozen", steps, [0.98 - 0.3 * 0.5**k for k in range(11)], 0.015),
        ),
        is_share=True,
    )


def noise():
    return Panel(
        title="Accuracy with wrong labels",
        x_name="share of wrong labels",
        y_name="test accuracy",
        series=(
            line("7 stages frozen", (0, 0.2), (0.97, 0.88)),
            line("nothing frozen", (0, 0.2), (0.975, 0.9)),
        ),
        is_share=True,
    )


def picture(seed, *, side=64, kind="JPEG"):
    """A picture in base64: a shape on a ground, both of a colour of their own."""
    ground, ink = (tuple((seed * step + at * 83) % 256 for at in range(3)) for step in (37, 101))
    image = Image.new("RGB", (side, side), ground)
    box = [side // 5 + seed % 7, side // 5, side - side // 5, side - side // 5 - seed % 5]
    draw = ImageDraw.Draw(image)
    (draw.ellipse if seed % 2 else draw.rectangle)(box, fill=ink)
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 80} if kind == "JPEG" else {}))
    return base64.b64encode(file.getvalue()).decode()


def album_of(label="digit seven", *, stages=18, name="blocks", image=None):
    """Pictures of a run of 96 pixels; `label` and `image` stand in for every label and every picture."""

    def crop(seed):
        return Crop(sample=seed, label=label, image=image or picture(seed), strength=1 / (1 + seed % 4))

    return Album(
        filters=tuple(image or picture(seed, side=24, kind="PNG") for seed in range(32)),
        sights=tuple(
            Sight(
                stage=stage,
                name=f"{name}.{stage}",
                side=min(96, 3 + 8 * stage),
                channels=tuple(
                    Channel(index=5 * k, crops=tuple(crop(stage * 12 + k * 4 + at) for at in range(4)))
                    for k in range(3)
                ),
            )
            for stage in range(stages)
        ),
        mistakes=tuple(
            differing(seed, label, image or picture(seed, side=96), confidence=0.999 - seed / 100) for seed in range(12)
        ),
        doubts=tuple(
            differing(seed, label, image or picture(seed, side=96), confidence=0.999 - seed / 100)
            for seed in range(20, 23)
        ),
    )


def differing(seed, label, image, *, confidence):
    return Mistake(
        sample=seed,
        file=f"{label}/{seed}.png",
        label=label,
        prediction=f"not {label}",
        confidence=confidence,
        image=image,
    )


def texts_of(word="card", *, label="lost card", stages=3, name="layer"):
    """Texts of twelve tokens in which `word` is marked; it and `label` stand in for every one of the user's own."""

    def crop(seed):
        words = ("how", "do", "I", word, "##ing", " the", "Ġway")
        return Crop(sample=seed, label=label, strength=1 / (1 + seed % 4), start=seed % 3, words=words, marked=3)

    return _sequences_of(crop, stages, name, kind="text", whole=12, sides=(1, 3, 12))


def sounds_of(label="seven", *, stages=3, name="layer"):
    """Sounds of 8,000 values."""

    def crop(seed):
        return Crop(sample=seed, label=label, image=picture(seed), strength=1 / (1 + seed % 4), start=1000 * (seed % 4))

    return _sequences_of(crop, stages, name, kind="sound", whole=8000, sides=(80, 2500, 8000))


def _sequences_of(crop, stages, name, *, kind, whole, sides):
    return Album(
        sights=tuple(
            Sight(
                stage=stage,
                name=f"{name}.{stage}",
                side=sides[min(stage, 2)],
                channels=tuple(
                    Channel(index=5 * k, crops=tuple(crop(stage * 12 + k * 4 + at) for at in range(4)))
                    for k in range(3)
                ),
                kind=kind,
                whole=(whole,),
            )
            for stage in range(stages)
        )
    )
