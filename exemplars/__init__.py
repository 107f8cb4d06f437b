"""Exemplars: imported as dragon.exemplars."""

if __name__ != "dragon.exemplars":
    # under a second name every class would exist twice, and isinstance and the registry would disagree
    raise ImportError(f"import this package as dragon.exemplars, not as {__name__!r}")
