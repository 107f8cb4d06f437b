"""Log-mel spectrograms for the eye: a clip as a picture.

Knows samples and a rate. Mel scale after O'Shaughnessy (1987), m = 2595 log10(1 + f / 700). Made for looking at,
not for measuring: encoders have their own front ends.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RANGE_DB = 80.0


def log_mel(samples: NDArray[np.float32], rate: int, *, bands: int = 96, window: int = 1024) -> Floats:
    """(bands, frames) in dB below the clip's own peak, cut at -80; samples (c, t) or (t,), channels averaged.

    Frames are a quarter window apart; a clip shorter than the window is padded with silence.
    """
    mono = np.atleast_2d(np.asarray(samples, np.float64)).mean(0)
    mono = np.pad(mono, (0, max(0, window - len(mono))))
    frames = np.lib.stride_tricks.sliding_window_view(mono, window)[:: window // 4]
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)))
    mel = _filters(rate, bands, window) @ power.T
    level = 10 * np.log10(np.maximum(mel, 1e-12) / max(float(mel.max()), 1e-12))
    return np.asarray(np.maximum(level, -RANGE_DB), np.float64)


def spectrogram_png(samples: NDArray[np.float32], rate: int, *, width: float = 3.6, height: float = 1.7) -> bytes:
    """One clip's spectrogram as PNG, with seconds and kHz; width and height in inches at 100 dots an inch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    draw_spectrogram(figure.add_subplot(), samples, rate)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def draw_spectrogram(axes: Any, samples: NDArray[np.float32], rate: int) -> None:
    """Draws one clip into matplotlib `axes`."""
    bands = 96
    picture = log_mel(samples, rate, bands=bands)
    seconds = np.atleast_2d(samples).shape[-1] / rate
    axes.imshow(
        picture, origin="lower", aspect="auto", cmap="magma", vmin=-RANGE_DB, vmax=0, extent=(0, seconds, 0, bands)
    )
    marks = [hz for hz in (250, 1000, 4000, 16000) if hz < rate / 2]
    places = [bands * _mel(hz) / _mel(rate / 2) for hz in marks]
    axes.set_yticks(places, [f"{hz / 1000:g}k" for hz in marks])
    axes.tick_params(labelsize=7, length=2)
    axes.set_xlabel("seconds", fontsize=7, labelpad=1)


def _filters(rate: int, bands: int, window: int) -> Floats:
    """(bands, window / 2 + 1) triangles, equally spaced on the mel scale from 0 to half the rate."""
    edges = 700 * (10 ** (np.linspace(0, _mel(rate / 2), bands + 2) / 2595) - 1)
    hz = np.fft.rfftfreq(window, 1 / rate)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.clip(np.minimum((hz - low) / (centre - low), (high - hz) / (high - centre)), 0, None)
    # low bands are narrower than a bin: give each the bin nearest to its centre, or it would be blank
    nearest = np.abs(hz - centre).argmin(1)
    triangles[np.arange(bands), nearest] = np.maximum(triangles[np.arange(bands), nearest], 1e-1)
    return np.asarray(triangles / triangles.sum(1, keepdims=True), np.float64)


def _mel(hz: float) -> float:
    return float(2595 * np.log10(1 + hz / 700))
