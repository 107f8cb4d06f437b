"""Rewards: imported as dragon.rewards."""

if __name__ != "dragon.rewards":
    # under a second name every class would exist twice, and isinstance and the registry would disagree
    raise ImportError(f"import this package as dragon.rewards, not as {__name__!r}")
