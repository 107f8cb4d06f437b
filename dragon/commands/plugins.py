"""dragon plugins [KIND]"""

from __future__ import annotations

from dragon.registry import BUILT_IN, available


def run(arguments: list[str]) -> None:
    found = {kind: available(kind) for kind in arguments or BUILT_IN}
    for kind, names in found.items():
        print(f"{kind}")
        for name, place in names.items():
            print(f"  {name:20} {place}")
