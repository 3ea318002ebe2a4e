"""How names and numbers are written for people, in the report and on its plots."""

import html
import math

UNKNOWN = "not measured"
"""What stands where a number is missing or not finite."""


def label(text: str) -> str:
    """Escape a name for a plotly label, which reads some HTML and TeX, and show its control characters.

    Example:
        >>> label("<b>bold</b>")
        '&lt;b&gt;bold&lt;/b&gt;'
    """
    return html.escape(visible(text), quote=False).replace("$", "&#36;")


def visible(text: str) -> str:
    """Write control characters and unpaired surrogates as escapes, so that a name stays one line of text.

    Example:
        >>> visible("a" + chr(10) + "b")
        'a\\\\nb'
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def share(value: float | None) -> str:
    """Write a share or a small ratio with three digits: .972, 1.000, 1.21.

    Example:
        >>> share(0.9721), share(1.0), share(12.3), share(None)
        ('.972', '1.000', '12.30', 'not measured')
    """
    if value is None or not math.isfinite(value):
        return UNKNOWN
    written = f"{value:.2f}" if abs(value) > 1 else f"{value:.3f}"
    return written.replace("0.", ".", 1) if abs(value) < 1 and not written.lstrip("-").startswith("1") else written


def interval(value: float, low: float, high: float) -> str:
    """Write a share with its interval.

    Example:
        >>> interval(0.972, 0.958, 0.984)
        '.972 (.958–.984)'
    """
    return f"{share(value)} ({share(low)}–{share(high)})"


def decimal(value: float | None) -> str:
    """Write a figure with three decimals and its leading nought, as losses are written.

    Example:
        >>> decimal(0.1234), decimal(float("nan"))
        ('0.123', 'not measured')
    """
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:.3f}"


def rate(value: float) -> str:
    """Write a learning rate.

    Example:
        >>> rate(1e-3), rate(2.5e-4), rate(0)
        ('1e-3', '2.5e-4', '0')
    """
    if not value:
        return "0"
    digits, exponent = f"{value:.2e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def duration(seconds: float | None) -> str:
    """Write seconds as people say them.

    Example:
        >>> duration(0.42), duration(61.4), duration(754), duration(7500)
        ('0.42 s', '61.4 s', '12 min 34 s', '2 h 5 min')
    """
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def scaled(value: float, unit: str = "") -> str:
    """Write a count with a decimal prefix: 4.65 M, 386 MFLOP.

    Example:
        >>> scaled(4_651_234), scaled(385_900_000, "FLOP"), scaled(12, "B"), scaled(8000)
        ('4.65 M', '386 MFLOP', '12 B', '8,000')
    """
    if not math.isfinite(value):
        return UNKNOWN
    if abs(value) < (1000 if unit else 100_000):
        return f"{value:,.0f} {unit}".rstrip()
    for prefix, power in (("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15)):
        if abs(value) < 0.9995 * 10 ** (power + 3) or prefix == "P":
            break
    return f"{value / 10**power:#.3g}".rstrip(".") + f" {prefix}{unit}"


def byte_count(value: float) -> str:
    """Write bytes with a decimal prefix.

    Example:
        >>> byte_count(1_234_567)
        '1.23 MB'
    """
    return scaled(value, "B")


def axis_share(value: float) -> str:
    """Write a tick of an axis as short as it can be said.

    Example:
        >>> axis_share(0.95), axis_share(1.0), axis_share(0)
        ('.95', '1', '0')
    """
    written = f"{value:.4f}".rstrip("0").rstrip(".")
    return written.replace("0.", ".", 1) if written.lstrip("-").startswith("0.") else written


def even_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Place ticks at round values from below `low` to above `high`.

    Example:
        >>> even_ticks(0.863, 0.988)
        [0.85, 0.875, 0.9, 0.925, 0.95, 0.975, 1.0]
    """
    span = max(high - low, 1e-3)
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if span / (factor * power) <= about)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 10) for k in range(first, max(last, first + 1) + 1)]
