"""What the evidence shows: a verdict for each claim with its plots, and samples to look at.

Records only; nothing here knows of torch. Shares are 0 to 1.
"""

from typing import ClassVar, Literal

from frostline.record import Record

CLAIMS = ("reuse", "data", "convergence", "stability", "regularisation", "resources")
"""The six claims, in the order in which they are paid for unless the user says another."""

ClaimName = Literal["reuse", "data", "convergence", "stability", "regularisation", "resources"]
Verdict = Literal["holds", "does not hold", "not decided", "not measured"]


class Series(Record):
    """One line of a plot.

    Args:
        name: What it shows, in words.
        x: Positions, ascending.
        y: Heights.
        low: Lower ends of the 95 % intervals, or empty.
        high: Upper ends, or empty.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


class Panel(Record):
    """One plot of a claim.

    Args:
        title: What can be seen, in words.
        x_name: Name of the horizontal axis, with its unit.
        y_name: Name of the vertical axis, with its unit.
        series: The lines.
        is_share: Whether the heights are shares, to be written as percent.
        is_log: Whether the horizontal axis is logarithmic.
    """

    title: str
    x_name: str
    y_name: str
    series: tuple[Series, ...]
    is_share: bool = False
    is_log: bool = False


class Claim(Record):
    """One thing that freezing is said to bring, measured on the user's own data.

    Args:
        name: Which of the six.
        verdict: "holds", "does not hold", "not decided", or "not measured".
        sentence: What was found, in a sentence that a person who is no expert follows.
        measure: What the number is, in words.
        value: The number; positive (above 1 for a ratio) speaks for the claim. None where nothing was measured.
        low: Lower end of its 95 % interval.
        high: Upper end.
        unit: "points" of accuracy, or "times".
        control: What could have refuted the claim, and what it gave, in words.
        facts: Further figures, as (name, value) in words.
        panels: Plots.
        attempts: Keys of the trainings that it rests on.
        cost: What they cost, in full fine-tunes; each is counted with the first claim that needed it.
    """

    name: ClaimName
    verdict: Verdict
    sentence: str
    measure: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    unit: Literal["points", "times", ""] = ""
    control: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    panels: tuple[Panel, ...] = ()
    attempts: tuple[str, ...] = ()
    cost: float = 0.0


# --- samples to look at -----------------------------------------------------------------------


class Crop(Record):
    """A part of one of the user's pictures, sounds or texts.

    Args:
        sample: Number of the sample in its part.
        label: Its class.
        image: JPEG, in base64: of a picture the part itself, of a sound its spectrogram, of a text nothing.
        strength: How strongly the channel answered, as a share of its strongest answer, 0 to 1.
        start: First value of a sound, or first token of a text, that the part holds, counted from 0.
        words: The tokens of the part of a text, as they shall be read.
        marked: Which of the words the channel answered to, counted from 0.
    """

    sample: int
    label: str
    image: str = ""
    strength: float = 1.0
    start: int = 0
    words: tuple[str, ...] = ()
    marked: int = 0


class Channel(Record):
    """What excites one channel most: the crops, the strongest first, each from another sample."""

    index: int
    crops: tuple[Crop, ...]


class Sight(Record):
    """What one stage sees.

    Args:
        stage: Its index.
        name: Its name.
        side: Side of its receptive field in pixels of a picture, values of a sound or tokens of a text; at most that
            of the whole.
        channels: A few channels, those that tell the samples apart most.
        kind: What it looks at.
        whole: What there is to see: height and width of a picture, values of a sound, tokens of the longest text that
            was looked at. Empty where an older version did not say.
    """

    stage: int
    name: str
    side: int
    channels: tuple[Channel, ...]
    kind: Literal["picture", "sound", "text"] = "picture"
    whole: tuple[int, ...] = ()


class Mistake(Record):
    """A picture whose label and answer differ.

    Args:
        sample: Its number in its part.
        file: Its path as the user gave it, or "" for samples from memory.
        label: Its class.
        prediction: The class that it was taken for.
        confidence: Probability of that answer, 0 to 1.
        image: JPEG, in base64.
    """

    sample: int
    file: str
    label: str
    prediction: str
    confidence: float
    image: str


class Album(Record):
    """What there is to look at of a run: `album.json`.

    Args:
        filters: The first layer's filters, one PNG in base64 each; empty where the first layer has none to look at.
        sights: What each stage sees.
        mistakes: The most confident mistakes on the test part, the most confident first.
        doubts: Pictures of the training part whose label may be wrong, the surest first.
    """

    version: ClassVar[int] = 2

    filters: tuple[str, ...] = ()
    sights: tuple[Sight, ...] = ()
    mistakes: tuple[Mistake, ...] = ()
    doubts: tuple[Mistake, ...] = ()
