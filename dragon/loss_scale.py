"""The factor that carries the small gradients of float16 over its smallest number (about 6e-8).

Knows a number and how often it served. The loss is multiplied by it before the backward pass, the gradient divided by
it after: being a power of two it changes no digit of what neither overflows nor vanishes. Micikevicius et al. (2018),
"Mixed Precision Training", section 3.2; the growth is that of torch.amp.GradScaler. There an update that overflows is
left out; here it is repeated with half the factor, so that the factor decides of no update.
"""

from __future__ import annotations

from collections.abc import Mapping

START = 2.0**16
GROWTH_AFTER = 2000  # updates without overflow; torch's growth_interval


class LossScale:
    """1 for ever unless `used`."""

    def __init__(self, used: bool) -> None:
        self._used = used
        self.value = START if used else 1.0
        self._served = 0

    def lower(self) -> bool:
        """Halves it after an overflow; False where that cannot help, because it is 1."""
        if self.value <= 1.0:
            return False
        self.value, self._served = self.value / 2, 0
        return True

    def served(self) -> None:
        """Takes note of an update without overflow; doubles after many of them."""
        self._served += self._used
        if self._used and self._served % GROWTH_AFTER == 0:
            self.value *= 2

    def state_dict(self) -> dict[str, float]:
        """JSON values; empty if it is not used."""
        return {"value": self.value, "served": self._served} if self._used else {}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Goes on from what `state_dict` gave; a run of another precision starts its own."""
        if self._used and state:
            self.value, self._served = float(state["value"]), int(state["served"])
