"""dragon sample RUN|POLICY --prompt TEXT ..."""

from __future__ import annotations

from dragon.commands.arguments import parsed, positional


def run(arguments: list[str]) -> None:
    model, flags = positional(arguments, "model", "dragon sample RUN_FOLDER_OR_POLICY --prompt TEXT")
    from dragon import samples

    wanted = parsed(samples.SampleRequest, flags, "dragon sample RUN|POLICY")
    for path in samples.write_samples(model, wanted):
        print(path, flush=True)
