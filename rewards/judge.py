"""The judge's opinion of how well a clip fits its prompt: for evaluation, never a training reward.

The same cosine as the CLAP score, by an encoder of another architecture trained on other works. A tuned model that
only pleases its reward's encoder gains in `clap_score` and not here.
"""

from __future__ import annotations

from torch import Tensor

from dragon.encoders.lookup import get_joint_encoder
from dragon.media import Media
from dragon.protocols import Encoder
from dragon.rewards.clap import prompt_cosine


class JudgeScore:
    """Cosine of a clip with its prompt by the judge. In [-1, 1], higher is better."""

    abstains = False

    def __init__(
        self, encoder: str | Encoder = "mini-judge", *, device: str = "cpu", name: str = "judge_score"
    ) -> None:
        self._name = name
        self.encoder = get_joint_encoder(encoder, device=device)

    @property
    def name(self) -> str:
        return self._name

    def score(self, media: Media) -> Tensor:
        """(b,) float64. Raises NotFinite, AudioError as the encoder does."""
        return prompt_cosine(self.encoder, media)
