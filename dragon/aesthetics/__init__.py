"""A predictor of what people like: ratings or votes of clips -> a linear head, and how far it can be trusted.

The reward that uses a head, and its file, are dragon.rewards.aesthetics; `dragon aesthetics fit` does all of it.
"""

from dragon.aesthetics.ceiling import Ceiling, rater_ceiling
from dragon.aesthetics.fit import Fit, fit, head_of
from dragon.aesthetics.ratings import Opinions, Ratings, Votes, find_audio, load_opinions
from dragon.aesthetics.regression import bradley_terry
from dragon.aesthetics.report import Report, report

__all__ = [
    "Ceiling",
    "Fit",
    "Opinions",
    "Ratings",
    "Report",
    "Votes",
    "bradley_terry",
    "find_audio",
    "fit",
    "head_of",
    "load_opinions",
    "rater_ceiling",
    "report",
]
