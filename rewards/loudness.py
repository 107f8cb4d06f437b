"""Loudness of a clip after ITU-R BS.1770-4: K-weighting, blocks of 400 ms, an absolute and a relative gate.

Knows samples, no reward. In float64 by scipy, which is imported where it is used. torchaudio's function clips what it
filters to [-1, 1], so that loud clips read low, and gives NaN for silence (tests/rewards/test_loudness.py).
"""

from __future__ import annotations

import math

import numpy as np

from dragon.audio import Audio
from dragon.errors import AudioError, NotFinite

ABSOLUTE_GATE = -70.0
"""LUFS; blocks below it count as silence."""

_BLOCK, _STEP = 0.4, 0.1  # seconds
_RELATIVE_GATE = -10.0  # LU below the mean of what passes the absolute gate
_OFFSET = -0.691  # makes a full-scale 997 Hz sine in one channel -3.01 LUFS
_WEIGHTS = {1: (1.0,), 2: (1.0, 1.0), 3: (1.0, 1.0, 1.0), 5: (1.0, 1.0, 1.0, 1.41, 1.41)}
_LOWEST_RATE = 4000  # the shelf lies at 1.7 kHz


def integrated_loudness(audio: Audio) -> float:
    """LUFS of the whole clip; -inf if all of it is below the absolute gate of -70 LUFS.

    Channels are L, R, C, Ls, Rs. A clip shorter than one block is one block.

    Raises:
        AudioError: empty, 4 or more than 5 channels, or a rate below 4 kHz. NotFinite: NaN or infinity.
    """
    channels, length = audio.samples.shape
    if length == 0 or channels not in _WEIGHTS:
        raise AudioError(f"loudness of samples {audio.samples.shape}; expected 1, 2, 3 or 5 channels, not empty")
    if audio.rate < _LOWEST_RATE:
        raise AudioError(f"loudness at {audio.rate} Hz; expected at least {_LOWEST_RATE} Hz; resample the clip")
    if not np.isfinite(audio.samples).all():
        raise NotFinite("loudness of samples that hold NaN or infinity; find the part that made them")
    from scipy.signal import sosfilt

    power = np.square(sosfilt(k_weighting(audio.rate), audio.samples.astype(np.float64), axis=1))
    block, step = min(length, round(_BLOCK * audio.rate)), round(_STEP * audio.rate)
    total = np.concatenate([np.zeros((channels, 1)), power.cumsum(axis=1)], axis=1)
    start = np.arange(0, length - block + 1, step)
    blocks = np.asarray(_WEIGHTS[channels]) @ (total[:, start + block] - total[:, start]) / block
    kept = blocks[_lufs(blocks) > ABSOLUTE_GATE]
    if not len(kept):
        return -math.inf
    kept = kept[_lufs(kept) > _lufs(kept.mean()) + _RELATIVE_GATE]
    return float(_lufs(kept.mean()))


def k_weighting(rate: int) -> np.ndarray:
    """(2, 6) second-order sections, a shelf for the head and a high pass, at any rate.

    Analogue prototypes whose bilinear transforms at 48 kHz are the standard's tables 1 and 2.
    """
    shelf, high = math.tan(math.pi * 1681.974450955533 / rate), math.tan(math.pi * 38.13547087602444 / rate)
    shelf_q, high_q = 0.7071752369554196, 0.5003270373238773
    top = 10 ** (3.999843853973347 / 20)
    middle = top**0.4996667741545416
    first = 1 + shelf / shelf_q + shelf**2
    second = 1 + high / high_q + high**2
    return np.array(
        [
            [
                (top + middle * shelf / shelf_q + shelf**2) / first,
                2 * (shelf**2 - top) / first,
                (top - middle * shelf / shelf_q + shelf**2) / first,
                1.0,
                2 * (shelf**2 - 1) / first,
                (1 - shelf / shelf_q + shelf**2) / first,
            ],
            [1.0, -2.0, 1.0, 1.0, 2 * (high**2 - 1) / second, (1 - high / high_q + high**2) / second],
        ]
    )


def _lufs(power: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return _OFFSET + 10 * np.log10(np.maximum(power, 0.0))  # differences of sums may round below 0
