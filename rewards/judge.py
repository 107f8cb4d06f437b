"""The judge's opinion of how well a clip fits its prompt: for evaluation, never a training reward.

The same cosine as the CLAP score, by an encoder of another architecture trained on other works. A tuned model that
only pleases its reward's encoder gains in `clap_score` and not here.
"""

from __future__ import annotations

from dragon.protocols import Encoder
from dragon.rewards.clap import PromptCosine


class JudgeScore(PromptCosine):
    """Cosine of a clip with its prompt by the judge. In [-1, 1], higher is better."""

    def __init__(
        self, encoder: str | Encoder = "mini-judge", *, device: str = "cpu", name: str = "judge_score"
    ) -> None:
        super().__init__(encoder, device, name)
