"""Frechet distance of a whole set of clips to an exemplar set ("dataset FAD"), as a reward that can be trained toward.

Knows features, exemplar sets and encoders by their protocol. All frames of a set's clips are pooled, ddof 1, and the
distance is that of dragon.rewards.frechet. With the exemplars' covariance L^T L and the frames' own Y^T Y it needs
the sum of the singular values of Y L^T only: frames are projected by L once, and every set is made of them
(dragon.rewards.frechet_sets). The credit of a clip is the distance's derivative: with T the optimal transport map
from the set's Gaussian to the exemplars' (Dowson & Landau, 1982; Olkin & Pukelsheim, 1982), d tr (S S_R)^(1/2) is
tr(T dS) / 2; the mixture's derivative is an own derivation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dragon.encoders.lookup import EncoderSpec
from dragon.errors import ShapeError
from dragon.exemplars.features import as_features
from dragon.exemplars.sets import ExemplarSet, load_with_encoder
from dragon.media import Media
from dragon.rewards.frechet_sets import BLOCK_NUMBERS, Frames
from dragon.rewards.frechet_swaps import FrechetScorer
from dragon.rewards.set_kernel import gap_share


class SetFrechet:
    """Set reward: minus the squared Frechet distance of all frames of a set's clips to an exemplar set. At most 0.

    Small sets are far from any exemplars: n frames estimate a covariance with an error of order f / n, so compare
    sets of one size only.

    exemplars: a set, the name of a shipped one, or the path of a set file. encoder: a name, {name, options} or an
    object; None: the one that made the set. An encoder other than the set's is refused. device: where a named encoder
    runs. name: what reports call it, where one run has two of them.
    """

    def __init__(
        self,
        exemplars: str | ExemplarSet,
        encoder: EncoderSpec | None = None,
        *,
        device: str = "cpu",
        name: str = "set_frechet",
    ) -> None:
        self._name = name
        self.exemplars, self.encoder = load_with_encoder(exemplars, encoder, device)
        self._reference = self.exemplars.gaussian()  # factored once

    @property
    def name(self) -> str:
        return self._name

    def embed(self, media: Media) -> Tensor:
        """(b, s, f) float32 on the CPU: the encoder's frames."""
        return self.encoder.embed_media(media).to("cpu", torch.float32)

    def score_sets(self, features: Tensor, members: Tensor) -> Tensor:
        """(k,) float64, exact to 1e-9 of the covariances' traces (3e-7 where both conditions are above 1e6). With
        N = n s frames a set:

        N <= f: O(N^2 f) a set, by its Gram matrix. N > f: O(f^3) a set and O(s f^2) for each clip in which it differs
        from the set of all clips named, or O(N f^2) where that is less. Memory: some float64 copies of those clips.

        Raises:
            ShapeError: not (b, s, f) with the exemplars' f, or sets of fewer than two frames. NotFinite: with the clip.
        """
        rows, members = members.unique(return_inverse=True)
        return self._frames(features[rows], "features").score_sets(members)

    def swap_scorer(self, features: Tensor) -> FrechetScorer:
        """Exact neighbours, upper bounds from a tangent of the trace term."""
        return FrechetScorer(self._frames(features, "features"))

    def influence(self, queue: Tensor, features: Tensor) -> Tensor:
        """(b,) float64: the derivative of the score as the share of each clip in the queue grows from 0; mean 0 over
        the queue's own clips. It is minus the mean over a clip's frames x of

            2 (m - m_R).y + y^T (I - T) y - tr((I - T) S)        y = x - m

        with m, S the queue's moments (ddof 0) and T = S^(-1/2) (S^(1/2) S_R S^(1/2))^(1/2) S^(-1/2) on the support of
        S. What a frame has outside the queue's support, where the derivative is infinite, counts as if the exemplars
        had no spread there. Cost O(q s f^2 + f^3) for a queue of q clips.

        Raises:
            ShapeError, NotFinite: as `score_sets`.
        """
        fresh = self._checked(features, "features")
        self._check_shape(queue, "queue")
        mean, values, vectors = _moments(queue.detach().to("cpu").flatten(0, 1), f"{self.name}: queue")
        # S = F^T F with F^T = vectors * sqrt(values). L F^T = U diag(sigma) V^T gives T = W diag(sigma) W^T with
        # W = vectors / sqrt(values) V: F T F^T is the symmetric root of F S_R F^T
        _, sigma, right = torch.linalg.svd(self._reference.factor @ (vectors * values.sqrt()), full_matrices=False)
        transport = (vectors / values.sqrt()) @ (right.mT * sigma.sqrt())
        y = fresh - mean
        bent = y.square().sum(dim=2) - (y @ transport).square().sum(dim=2) - (values.sum() - sigma.sum())
        return -(2 * y @ (mean - self._reference.mean) + bent).mean(dim=1)

    def figures(self, features: Tensor, credits: Tensor) -> dict[str, float]:
        """How much of the credits the encoder's modality gap explains (`gap_share`); empty for encoders without one."""
        gap = getattr(self.encoder, "gap", None)
        return {} if gap is None else {"gap_share": gap_share(features, credits, gap)}

    def _frames(self, features: Tensor, what: str) -> Frames:
        return Frames.of(self._checked(features, what), self._reference)

    def _checked(self, features: Tensor, what: str) -> Tensor:
        """(b, s, f) float64."""
        self._check_shape(features, what)
        return as_features(features.flatten(1), f"{self.name}: {what}").view(features.shape)  # a row is a clip

    def _check_shape(self, features: Tensor, what: str) -> None:
        if features.ndim != 3 or features.shape[2] != self.exemplars.size:
            raise ShapeError(
                f"{self.name}: {what} of shape {tuple(features.shape)}; expected (clips, frames, {self.exemplars.size})"
            )


def _moments(frames: Tensor, what: str) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (f,) of (n, f) frames, and the covariance (ddof 0) on its support: values (k,) and vectors (f, k).

    Read in blocks, because a queue is large and comes as float32.
    """
    n, f = frames.shape
    blocks = frames.split(max(1, BLOCK_NUMBERS // f))
    mean = sum((block.double().sum(dim=0) for block in blocks), torch.zeros(f, dtype=torch.float64)) / n
    if not bool(mean.isfinite().all()):
        as_features(frames, what)  # finds the frame
    if n <= f:
        _, singular, right = torch.linalg.svd(frames.double() - mean, full_matrices=False)
        values, vectors = singular.square() / n, right.mT
    else:
        scatter = torch.zeros(f, f, dtype=torch.float64)
        for block in blocks:
            centred = block.double() - mean
            scatter.addmm_(centred.mT, centred)
        values, vectors = torch.linalg.eigh(scatter / n)
    kept = values > max(n, f) * torch.finfo(torch.float64).eps * values.max()
    return mean, values[kept], vectors[:, kept]
