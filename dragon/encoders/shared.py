"""What clips and captions have in common: a small space in which a set of captions can stand for a set of clips.

A joint encoder puts each modality into a region of its own (the modality gap, Liang et al. 2022, arXiv 2203.02053),
so the distance from clips to captions can be mostly that between two regions, and moving across the gap pay more than
meaning does. Here each modality is centred on its own mean, projected on the directions in which a clip and its caption
vary together, and divided by its own spread there:

    C = (X^T Y + Y^T X) / 2          X, Y: centred embeddings of paired clips and captions

The eigenvectors of C with the largest eigenvalues are the directions; what only one modality varies in adds nothing to
C on average. Those are kept whose correlation on held-out pairs is above chance and above a stated least one. The
same direction is read in both modalities, because a joint encoder gives one meaning one place. Knows joint encoders by
their protocol.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dragon.encoders import windows
from dragon.encoders.identity import fingerprint
from dragon.encoders.lookup import get_joint_encoder
from dragon.errors import ConfigError, NotFinite, ShapeError
from dragon.files import write_whole
from dragon.media import Media
from dragon.protocols import JointEncoder

VERSION = 1
SUFFIX = ".safetensors"
DATA = Path(__file__).parent / "data"
"""Where the shipped spaces lie."""

_LEAST_PAIRS = 100
_CHANCE = 4.0  # standard deviations 1 / sqrt(n) of a correlation by chance: below .005 for one of 128 directions


@dataclass(frozen=True, eq=False)
class SharedSpace:
    """Centre, directions and spread of both modalities; float64.

    audio_mean, text_mean (f,). basis (f, r), orthonormal columns. audio_sd, text_sd (r,): spread of each modality
    along them over generic pairs. correlations (r,): of a clip with its caption along them, on held-out pairs.
    encoder, encoder_hash: name and fingerprint of the joint encoder. pairs: how many it was fitted on.
    """

    audio_mean: Tensor
    text_mean: Tensor
    basis: Tensor
    audio_sd: Tensor
    text_sd: Tensor
    correlations: Tensor
    encoder: str
    encoder_hash: str
    pairs: int
    version: int = VERSION

    def __post_init__(self) -> None:
        size, rank = self.basis.shape if self.basis.ndim == 2 else (0, 0)
        wanted = {"audio_mean": size, "text_mean": size, "audio_sd": rank, "text_sd": rank, "correlations": rank}
        shapes = {key: tuple(getattr(self, key).shape) for key in _TENSORS}
        if rank == 0 or any(shapes[key] != (count,) for key, count in wanted.items()):
            raise ShapeError(f"shared space of shapes {shapes}; expected basis (f, r), means (f,), all others (r,)")
        for key in _TENSORS:
            if not bool(torch.isfinite(getattr(self, key)).all()):
                raise NotFinite(f"shared space of encoder {self.encoder!r}: {key} holds NaN or infinity")
        if not bool((self.audio_sd > 0).all() and (self.text_sd > 0).all()):
            raise ShapeError(f"shared space of encoder {self.encoder!r}: a spread is not above 0; fit it anew")

    @property
    def rank(self) -> int:
        """r."""
        return self.basis.shape[1]

    @property
    def gap(self) -> Tensor:
        """(r,) unit vector: where the coordinates of a clip go if its embedding moves along the modality gap.

        Zero if the gap lies outside the space: no such move changes them.
        """
        inside = self.basis.mT @ (self.audio_mean - self.text_mean)
        if float(inside.norm()) <= 1e-9 * self.gap_size:
            return torch.zeros_like(inside)
        return torch.nn.functional.normalize(inside / self.audio_sd, dim=0)

    @property
    def gap_size(self) -> float:
        """Distance between the two means, in the encoder's own units."""
        return float((self.audio_mean - self.text_mean).norm())

    @property
    def gap_share(self) -> float:
        """Share of the gap's squared length that lies in the space, in [0, 1]; 0 if there is no gap."""
        whole = (self.audio_mean - self.text_mean).square().sum()
        inside = (self.basis.mT @ (self.audio_mean - self.text_mean)).square().sum()
        return float((inside / whole).clamp(0, 1)) if float(whole) > 0 else 0.0

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify the coordinates: the encoder, and every number they depend on."""
        digest = hashlib.blake2b(self.encoder_hash.encode(), digest_size=8)
        for key in ("audio_mean", "text_mean", "basis", "audio_sd", "text_sd"):
            digest.update(getattr(self, key).to("cpu", torch.float64).contiguous().numpy().tobytes())
        return digest.hexdigest()

    def of_audio(self, embeddings: Tensor) -> Tensor:
        """(..., f) clip embeddings -> (..., r) float64, with mean 0 and variance 1 each over generic clips."""
        return (embeddings.to(self.basis) - self.audio_mean) @ self.basis / self.audio_sd

    def of_text(self, embeddings: Tensor) -> Tensor:
        """(..., f) caption embeddings -> (..., r), the same over generic captions."""
        return (embeddings.to(self.basis) - self.text_mean) @ self.basis / self.text_sd

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the file beside its place and renames it, so that it is complete or absent. Returns its path."""
        from safetensors.torch import save

        target = Path(path)
        if target.suffix != SUFFIX:
            raise ConfigError(f"shared space {target}: expected a name that ends in {SUFFIX}")
        header = {"encoder": self.encoder, "encoder_hash": self.encoder_hash}
        header |= {key: json.dumps(getattr(self, key)) for key in (*_NUMBERS, "gap_size", "gap_share")}
        tensors = {key: getattr(self, key).to("cpu", torch.float64).contiguous() for key in _TENSORS}
        content = save(tensors | {"gap": self.gap.contiguous()}, metadata=header)
        try:
            write_whole(target, content)
        except OSError as error:
            raise ConfigError(f"shared space {target} cannot be written ({error}); choose another place") from error
        return target

    @staticmethod
    def load(name: str | os.PathLike[str]) -> SharedSpace:
        """A shipped space by its name, or a file by its path.

        Raises:
            ConfigError: neither exists, or the file is no shared space.
        """
        from safetensors import SafetensorError, safe_open

        text = os.fspath(name)
        path = Path(text) if text.endswith(SUFFIX) or os.sep in text else DATA / f"{text}{SUFFIX}"
        if not os.path.isfile(path):
            shipped = ", ".join(sorted(found.stem for found in DATA.glob(f"*{SUFFIX}"))) or "none"
            raise ConfigError(
                f"no shared space {text!r}; shipped: {shipped}; one of your own is named by its path and made with "
                "dragon.encoders.shared.fit_shared_space"
            )
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in _TENSORS}
            numbers = {key: json.loads(header[key]) for key in _NUMBERS}
            encoder, encoder_hash = header["encoder"], header["encoder_hash"]
        except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is not a shared space ({type(error).__name__}: {error}); fit it anew") from error
        if numbers["version"] != VERSION:
            raise ConfigError(f"{path} has version {numbers['version']}; this program reads version {VERSION}")
        return SharedSpace(**tensors, **numbers, encoder=encoder, encoder_hash=encoder_hash)


_TENSORS = ("audio_mean", "text_mean", "basis", "audio_sd", "text_sd", "correlations")
_NUMBERS = ("pairs", "version")


def fit_shared_space(
    audio: Tensor,
    text: Tensor,
    *,
    encoder: str,
    encoder_hash: str,
    min_correlation: float = 0.2,
    held_out: float = 0.25,
    seed: int = 0,
) -> SharedSpace:
    """The space that paired embeddings share: row i of `audio` and of `text`, both (n, f), is a clip and its caption.

    Take pairs that the encoder was not trained on, a few thousand, one row a clip: with rows of one clip on both sides
    of the split, chance would pass for correlation. encoder, encoder_hash: whose embeddings they are.

    min_correlation: least correlation, on the held-out share of the pairs, of a direction that is kept; raised to
    4 / sqrt(held-out pairs) where that is more. Directions come from the other pairs, means and spreads from all.

    Raises:
        ShapeError: not paired (n, f) tables. NotFinite: NaN or infinity. ConfigError: fewer than 100 pairs, or no
        direction in which clips and their captions vary together.
    """
    if not (0 <= min_correlation < 1 and 0 < held_out < 1):
        raise ConfigError(
            f"min_correlation {min_correlation}, held_out {held_out}; expected at least 0 and below 1, and a share"
        )
    x, y = _table(audio, "audio embeddings"), _table(text, "text embeddings")
    if x.shape != y.shape:
        raise ShapeError(
            f"audio embeddings {tuple(x.shape)}, text embeddings {tuple(y.shape)}; expected one row a pair"
        )
    pairs, test = len(x), round(held_out * len(x))
    if pairs < _LEAST_PAIRS or not 2 <= test <= pairs - 2:
        raise ConfigError(f"{pairs} pairs, {test} of them held out; give at least {_LEAST_PAIRS}, better thousands")
    order = torch.randperm(pairs, generator=torch.Generator().manual_seed(seed))
    basis = _directions(x[order[test:]], y[order[test:]])
    found = _correlations(x[order[:test]] @ basis, y[order[:test]] @ basis)
    least = max(min_correlation, _CHANCE / test**0.5)
    kept = found > least
    if not bool(kept.any()):
        raise ConfigError(
            f"clips and captions share no direction: the best of {len(found)} correlates {float(found.max()):.2f} on "
            f"{test} held-out pairs, expected more than {least:.2f}; check that row i of both is one pair, give more "
            "pairs, or use an encoder trained on clips with their captions"
        )
    basis = basis[:, kept]
    return SharedSpace(
        x.mean(dim=0),
        y.mean(dim=0),
        basis,
        (x @ basis).std(dim=0),
        (y @ basis).std(dim=0),
        found[kept],
        encoder,
        encoder_hash,
        pairs,
    )


class SharedEncoder:
    """Clips and captions as coordinates of a shared space: centred, in units of each modality's own spread.

    encoder: name or object of a joint encoder. space: "mini", the path of a file, or a space; it must have been fitted
    for that encoder. `embed_media` gives one vector a clip. Vectors are no unit vectors: 0 is a generic clip or
    caption, and a distance tells how unusual something is and in which way.

    Raises:
        ConfigError: the space belongs to another encoder. PluginError: the encoder embeds no text.
    """

    def __init__(
        self, encoder: str | JointEncoder = "mini", space: str | SharedSpace = "mini", *, device: str = "cpu"
    ) -> None:
        self._encoder = get_joint_encoder(encoder, device=device)
        self.space = space if isinstance(space, SharedSpace) else SharedSpace.load(space)
        if self.space.encoder_hash != self._encoder.fingerprint:
            raise ConfigError(
                f"the shared space was fitted for encoder {self.space.encoder!r} (fingerprint "
                f"{self.space.encoder_hash}), this is {self._encoder.name!r} (fingerprint "
                f"{self._encoder.fingerprint}); fit one for it with dragon.encoders.shared.fit_shared_space and give "
                "its path as space"
            )
        self.settings = {"encoder": self._encoder.fingerprint, "space": self.space.fingerprint}

    @property
    def name(self) -> str:
        return f"{self._encoder.name}-shared"

    @property
    def fingerprint(self) -> str:
        return fingerprint(**self.settings)

    @property
    def features(self) -> int:
        return self.space.rank

    @property
    def gap(self) -> Tensor:
        """(r,) float32: the modality gap's direction (`SharedSpace.gap`)."""
        return self.space.gap.float()

    def embed_media(self, media: Media) -> Tensor:
        """(b, 1, r)."""
        return self.embed_clips(media)[:, None]

    def embed_clips(self, media: Media) -> Tensor:
        """(b, r) on the CPU; no unit vectors."""
        return windows.checked(self.space.of_audio(self._encoder.embed_clips(media).cpu()), media, self.name)

    def embed_text(self, prompts: Sequence[str]) -> Tensor:
        """(b, r) on the CPU; no unit vectors."""
        return self.space.of_text(self._encoder.embed_text(prompts).cpu()).float()


def _table(embeddings: Tensor, what: str) -> Tensor:
    """(n, f) float64 on the CPU, checked."""
    table = embeddings.detach().to("cpu", torch.float64)
    if table.ndim != 2 or table.shape[1] == 0:
        raise ShapeError(f"{what} of shape {tuple(table.shape)}; expected (pairs, features)")
    if not bool(torch.isfinite(table).all()):
        row = int((~torch.isfinite(table)).any(dim=1).nonzero()[0, 0])
        raise NotFinite(f"{what}: row {row} holds NaN or infinity")
    return table


def _directions(x: Tensor, y: Tensor) -> Tensor:
    """(f, f) orthonormal columns: eigenvectors of the symmetric cross-covariance, the largest eigenvalue first."""
    cross = (x - x.mean(dim=0)).mT @ (y - y.mean(dim=0)) / (len(x) - 1)
    return torch.linalg.eigh((cross + cross.mT) / 2).eigenvectors.flip(1)


def _correlations(x: Tensor, y: Tensor) -> Tensor:
    """(r,) Pearson correlation of each column of x with that of y; 0 where one does not vary."""
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    length = x.norm(dim=0) * y.norm(dim=0)
    # a direction that one modality does not use holds rounding noise only
    used = length > 1e-12 * length.max()
    return torch.where(used, (x * y).sum(dim=0) / length.clamp(min=torch.finfo(x.dtype).tiny), 0.0)
