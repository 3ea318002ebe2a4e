"""Sounds as pictures: time to the right, low frequencies at the bottom, the louder the brighter."""

import torch
from PIL import Image

SIDES = (72, 48)
"""Width and height of a drawn spectrogram in pixels."""

_LONGEST, _SHORTEST = 256, 16
_RANGE = 60.0
"""Decibels below the loudest at which a drawing is black."""


def spectrogram(wave: torch.Tensor) -> Image.Image:
    """Draw the log-magnitude spectrogram of a stretch of sound.

    Its window is half of the stretch or less, a power of two from 16 to 256.

    Args:
        wave: (T,) of any length; what is no number counts as silence.

    Returns:
        A grey picture of `SIDES`, from black, 60 decibels below the loudest, to white. Silence is black.

    Example:
        >>> tone = torch.sin(torch.arange(400) * 2.5)
        >>> spectrogram(tone).size
        (72, 48)
    """
    values = wave.detach().cpu().double().nan_to_num(0.0, 0.0, 0.0)
    window = min(_LONGEST, max(_SHORTEST, 1 << (len(values) // 2).bit_length() >> 1))
    # The mean would be the loudest frequency of a recording whose middle is not zero.
    found = torch.stft(
        values - values.mean(),
        window,
        hop_length=max(1, len(values) // SIDES[0]),
        window=torch.hann_window(window, dtype=torch.float64),
        pad_mode="constant",
        return_complex=True,
    ).abs()
    # Silence has no loudest tone to be divided by.
    decibels = 20 * (found / found.max().clamp_min(1e-300)).clamp_min(1e-9).log10()
    pixels = ((decibels / _RANGE + 1).clamp(0, 1) * 255).round().byte().flip(0)
    return Image.fromarray(pixels.numpy()).resize(SIDES, Image.Resampling.BILINEAR)
