"""Every family on a GPU that need not be there: fake tensors know their device and refuse to mix two of them.

They have no values, so samples say nothing here; what is shown is that no tensor is left on the CPU.
"""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from dragon.media import Cond
from dragon.policy import pipeline
from dragon.policy.pipeline import PipelinePolicy
from dragon.protocols import Noising
from tiny_pipelines import PROMPTS, families, family

GPU = torch.device("cuda", 0)
pytestmark = pytest.mark.filterwarnings("ignore")  # torch and two families warn of what a test does


def on_gpu(module: nn.Module, mode: FakeTensorMode) -> None:
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                fake = mode.from_tensor(value.detach()).detach().to(GPU)
                part._parameters[name] = nn.Parameter(fake, value.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = mode.from_tensor(buffer).to(GPU)


def two_steps(
    scheduler: Any, network: Any, cond: Cond, seeds: list[int], shape: tuple[int, ...], device: torch.device
) -> Tensor:
    """In place of `scheduled`: a scheduler looks at the values of its times."""
    with unset_fake_temporarily():
        times = scheduler.timesteps.tolist()[:2]
    z = torch.randn(len(seeds), *shape, device=device)
    for time in times:
        z = z - network(z, torch.full((len(z),), time, device=device), cond).float()
    return z


@pytest.mark.parametrize("name", families())
def test_a_rollout_a_prediction_and_a_decoding_stay_on_the_device(name, monkeypatch):
    module = family(name)
    torch.manual_seed(0)
    pipe = module.tiny()
    made: Any = PipelinePolicy(pipe, rank=2, offload=False, **module.OPTIONS)
    backbone = made._backbone
    cond, empty = made.encode(PROMPTS[:2]), made.encode(["", ""])
    sigma = backbone.draw_sigmas(2, Generator())
    schedule = backbone._family.schedule(2)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                on_gpu(part, mode)
        backbone.device = GPU
        monkeypatch.setattr(pipeline, "scheduled", two_steps)
        monkeypatch.setattr(backbone._family, "schedule", lambda steps: schedule)
        cond, empty = (Cond({k: v.to(GPU) for k, v in c.tensors.items()}) for c in (cond, empty))
        with torch.no_grad():
            latents = backbone.rollout(cond, empty, [1, 2], steps=2, guidance=module.GUIDANCE)
            clips = backbone.decode_latents(latents)
        noising = Noising(sigma.to(GPU), torch.randn_like(latents))
        prediction = made.predict(latents, noising, cond)
        target = made.target(latents, noising)
    assert {t.device for t in (latents, clips, prediction, target)} == {GPU}
    assert latents.shape == prediction.shape == target.shape == (2, *made.event_shape)
    assert {t.dtype for t in (latents, clips, prediction, target)} == {torch.float32}


@pytest.mark.parametrize("name", families())
def test_schedulers_take_samples_of_another_device_than_their_own_numbers(name, monkeypatch):
    """A roll-out keeps the numbers on the CPU, so that no look at one waits for the GPU."""
    module = family(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: Any = PipelinePolicy(module.tiny(), rank=2, **module.OPTIONS)
    scheduler, seen = made._backbone._family.schedule(3), []
    if name in ("stable_audio", "stable_audio_3"):
        pytest.skip("it draws noise for the samples' values, which none have here")

    def network(z: Tensor, time: Tensor, cond: Cond) -> Tensor:
        seen.append((z.device.type, time.device.type))
        return z

    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # which knows no such device
    found = pipeline.scheduled(scheduler, network, Cond(), [1, 2], made.event_shape, torch.device("meta"))
    assert found.device.type == "meta" and set(seen) == {("meta", "meta")} and len(seen) >= 3
