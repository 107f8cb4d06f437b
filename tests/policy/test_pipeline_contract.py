"""What every family of pipelines must do, on a tiny random pipeline of the real classes, saved to and loaded from disk.

The second implementation is the pipeline's own `__call__`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from dragon.contrast import LeaveOneOut, Swap, best_worst
from dragon.errors import ConfigError
from dragon.media import Media
from dragon.objectives import DPO
from dragon.policy.pipeline import PipelinePolicy
from dragon.protocols import Noising
from dragon.rewards.clap import ClapScore
from dragon.rewards.set_vendi import SetVendi
from dragon.scoring import WeightedReward
from dragon.testing import check_policy
from dragon.trainer import Trainer, TrainSettings
from tiny_pipelines import PROMPTS, families, tiny_pipeline
from tiny_pipelines.musicldm import text_vector

TOLERANCE = 1e-5  # relative, of float32 across batch shapes; see `close`
SEEDS = [11, 12, 13]


@dataclass(frozen=True)
class Case:
    family: ModuleType
    folder: str

    def pipe(self) -> Any:
        """The pipeline as diffusers loads it, untouched by dragon."""
        from diffusers import DiffusionPipeline

        pipe = DiffusionPipeline.from_pretrained(self.folder)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def policy(self, **changes: Any) -> PipelinePolicy:
        return PipelinePolicy(self.folder, **{"rank": 2, "alpha": 4.0, **self.family.OPTIONS, **changes})

    def call(self, pipe: Any, prompt: str, seed: int, steps: int, guidance: float, output: str = "latent") -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        found: Tensor = self.family.call(pipe, prompt, generator, steps, guidance, output)
        return found


@pytest.fixture(scope="module", params=families())
def case(request, tmp_path_factory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    return Case(tiny_pipeline(request.param, folder), str(folder))


@pytest.fixture(scope="module")
def policy(case) -> PipelinePolicy:
    """Not trained; no test may change it."""
    return case.policy()


def close(found: Tensor, wanted: Tensor, relative: float = TOLERANCE) -> None:
    """Equal up to `relative` of the largest number."""
    assert found.shape == wanted.shape
    difference = float((found - wanted).abs().max() / wanted.abs().max())
    assert difference <= relative, f"differs by {difference:.2g} of the largest number"


def noised(policy: PipelinePolicy, rows: int, seed: int = 3) -> tuple[Tensor, Noising]:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(rows, *policy.event_shape, generator=generator)
    return latents, policy.draw_noising(latents, generator)


def step(policy: PipelinePolicy, size: float = 0.05) -> None:
    """One step of plain denoising on random latents."""
    optimiser = torch.optim.SGD(policy.trainable().values(), lr=1.0)
    latents, noising = noised(policy, 3)
    loss = (policy.predict(latents, noising, policy.encode(PROMPTS)) - policy.target(latents, noising)).square().mean()
    loss.backward()
    largest = max(float(p.grad.abs().max()) for p in policy.trainable().values() if p.grad is not None)
    for p in policy.trainable().values():
        if p.grad is not None:
            p.grad *= size / largest
    optimiser.step()


def trained(case: Case, **changes: Any) -> PipelinePolicy:
    """The adapter's second matrix starts at 0, and its first has no gradient before the second has moved."""
    policy = case.policy(**changes)
    step(policy, 0.5)
    step(policy, 0.5)
    return policy


def weights(pipe: Any) -> dict[str, Tensor]:
    """Of all components, under the names they had before an adapter wrapped them."""
    return {
        f"{part}.{name.replace('.base_layer.', '.')}": value.detach().clone()
        for part, module in pipe.components.items()
        if isinstance(module, nn.Module)
        for name, value in module.state_dict().items()
        if "lora_" not in name
    }


# ---- the tiny pipeline can show faults


def test_prompt_time_and_guidance_each_change_the_output(case, policy):
    latents, noising = noised(policy, 1)

    def predict(prompt: str, factor: float = 1.0) -> Tensor:
        with torch.no_grad():
            return policy.predict(latents, Noising(noising.sigma * factor, noising.noise), policy.encode([prompt]))

    def changed(one: Tensor, other: Tensor) -> bool:
        return float((one - other).abs().max()) > 1e-3 * float(one.abs().max())

    assert changed(predict(PROMPTS[0]), predict(PROMPTS[1]))
    # the network's own time, with its input held: not the share of noise in the input
    backbone = policy._backbone
    cond, time = policy.encode(PROMPTS[:1]), policy._backbone.denoiser.scaling.c_noise(torch.tensor([0.5, 2.0]))
    with torch.no_grad():
        assert changed(*(backbone.denoiser.net(latents, t[None], cond) for t in time))
    with_guidance, without = (
        policy.generate(PROMPTS[:1], [1], steps=2, guidance=g).latents for g in (case.family.GUIDANCE, 1.0)
    )
    assert changed(with_guidance, without)


# ---- sampling is the pipeline's own


def test_the_family_is_recognised_on_disk(case, policy):
    assert policy.settings["family"] == policy.name
    assert policy.settings["loudness"]
    with pytest.raises(ConfigError, match="did you mean"):
        case.policy(ranks=3)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("guided", [False, True])
def test_a_rollout_equals_the_pipelines_own_call(case, policy, guided, steps):
    """One step: the x0 that the first step expects. For the same seed and one prompt."""
    pipe, guidance = case.pipe(), case.family.GUIDANCE if guided else 1.0
    for prompt, seed in zip(PROMPTS[:2], SEEDS, strict=False):
        own = case.call(pipe, prompt, seed, steps, guidance)
        ours = policy.generate([prompt], [seed], steps=steps, guidance=guidance).latents
        close(ours, own)


class Negative:
    """A pipeline whose calls all have one negative prompt."""

    def __init__(self, pipe: Any, prompt: str) -> None:
        self._pipe, self._prompt = pipe, prompt

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)

    def __call__(self, *given: Any, **named: Any) -> Any:
        if named.pop("negative_prompt_embeds", None) is not None:  # of ""
            named["negative_prompt_embeds"] = text_vector(
                self._pipe, self._prompt, self._pipe.tokenizer.model_max_length
            )
            return self._pipe(*given, **named)
        return self._pipe(*given, negative_prompt=self._prompt, **named)


def test_a_negative_prompt_is_the_pipelines_own_or_is_refused_by_name(case, policy):
    if "negative" in getattr(case.family, "CANNOT", ()):
        with pytest.raises(ConfigError, match="takes no negative prompt"):
            case.policy(negative=PROMPTS[2])
        return
    ours = case.policy(negative=PROMPTS[2])
    assert ours.settings["negative"] == PROMPTS[2]
    pipe, given = Negative(case.pipe(), PROMPTS[2]), {"steps": 2, "guidance": case.family.GUIDANCE}
    found = ours.generate(PROMPTS[:1], SEEDS[:1], **given).latents
    assert not torch.equal(found, policy.generate(PROMPTS[:1], SEEDS[:1], **given).latents)
    close(found, case.call(pipe, PROMPTS[0], SEEDS[0], **given))
    batch = ours.generate(PROMPTS[:2], SEEDS[:2], **given)
    close(batch.latents[:1], found)


def test_decoded_clips_equal_the_pipelines_own(case, policy):
    own = case.call(case.pipe(), PROMPTS[0], SEEDS[0], 3, case.family.GUIDANCE, "pt")
    media = policy.decode(policy.generate(PROMPTS[:1], SEEDS[:1], steps=3, guidance=case.family.GUIDANCE))
    close(media.tensor, own.reshape(media.tensor.shape).float())
    assert media.rate == policy.settings["rate"]
    # the tiny decoder can show faults: clips depend on what is decoded
    other = policy.decode(policy.generate(PROMPTS[:1], SEEDS[1:2], steps=3, guidance=case.family.GUIDANCE)).tensor
    assert float((media.tensor - other).abs().max()) > 1e-2 * float(other.abs().max())


def test_a_sample_does_not_depend_on_its_batch(case, policy):
    guidance = case.family.GUIDANCE
    batch = policy.generate(PROMPTS, SEEDS, steps=3, guidance=guidance)
    latents, noising = noised(policy, 3)
    with torch.no_grad():
        predictions = policy.predict(latents, noising, batch.cond)
        clips = policy.decode(batch).tensor
        for i in range(3):
            alone = policy.generate(PROMPTS[i : i + 1], SEEDS[i : i + 1], steps=3, guidance=guidance)
            close(batch.latents[i : i + 1], alone.latents)
            row = Noising(noising.sigma[i : i + 1], noising.noise[i : i + 1])
            close(predictions[i : i + 1], policy.predict(latents[i : i + 1], row, alone.cond))
            close(clips[i : i + 1], policy.decode(batch.rows([i])).tensor)


def test_decoding_in_chunks_changes_nothing(case, policy):
    batch = policy.generate(PROMPTS, SEEDS, steps=2, guidance=1.0)
    close(case.policy(decode_rows=1).decode(batch).tensor, policy.decode(batch).tensor)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_other_solvers_sample_the_same_times(case, policy, sampler):
    """A single step is the clean sample expected at the first level, whatever the solver."""
    other = case.policy(sampler=sampler)
    found = other.generate(PROMPTS[:1], SEEDS[:1], steps=1, guidance=1.0).latents
    sigmas = other._backbone._family.sigmas(1)
    assert sigmas.isfinite().all() and sigmas[-1] == 0 and (sigmas.diff() < 0).all()
    noise = torch.randn(1, *other.event_shape, generator=torch.Generator().manual_seed(SEEDS[0]))
    with torch.no_grad():
        expected = other._backbone.denoiser(sigmas[0] * noise, sigmas[:1], other.encode(PROMPTS[:1]))
    close(found, expected)
    many = other.generate(PROMPTS[:1], SEEDS[:1], steps=5, guidance=case.family.GUIDANCE).latents
    assert many.isfinite().all()


# ---- training


def test_the_reference_equals_the_untouched_pipeline_to_the_bit(case):
    policy, latents = trained(case), noised(case.policy(), 3)
    guidance, plain = case.family.GUIDANCE, case.policy()
    part = policy._backbone._family.part
    assert not any("lora_" in name for name, _ in getattr(case.pipe(), part).named_parameters())
    pipe = case.pipe()
    getattr(pipe, part).requires_grad_(False)  # torch's matmul rounds another way for weights that ask for a gradient
    untouched = type(plain._backbone._family)(pipe, **case.family.OPTIONS)
    x, noising = latents
    sigma, cond = noising.sigma, policy.encode(PROMPTS)
    scaling = untouched.scaling
    level = sigma.reshape(-1, *[1] * (x.ndim - 1))
    with torch.no_grad(), policy.reference():
        z = scaling.c_in(level) * (x + level * noising.noise)
        wanted = untouched.network(z, scaling.c_noise(sigma), cond)
        assert torch.equal(policy.predict(x, noising, cond), wanted)
        found = policy.generate(PROMPTS, SEEDS, steps=3, guidance=guidance).latents
    assert torch.equal(found, plain.generate(PROMPTS, SEEDS, steps=3, guidance=guidance).latents)
    assert not torch.equal(found, policy.generate(PROMPTS, SEEDS, steps=3, guidance=guidance).latents)


def test_the_reference_samples_as_the_pipelines_own_call_to_the_bit(case):
    """For one prompt without guidance, which the pipeline encodes by itself as a policy does.

    Three families pad the text to a fixed length and mask it, the pipeline does not: sums over it round another way.
    """
    policy, pipe = trained(case), case.pipe()
    getattr(pipe, policy._backbone._family.part).requires_grad_(False)
    own = case.call(pipe, PROMPTS[0], SEEDS[0], 3, 1.0)
    with policy.reference():
        found = policy.generate(PROMPTS[:1], SEEDS[:1], steps=3, guidance=1.0).latents
    if policy.name in ("ace_step", "audioldm2", "longcat"):
        close(found, own, 1e-6)
    else:
        assert torch.equal(found, own)


def test_training_changes_the_adapter_only(case):
    pipe = case.pipe()
    before = weights(pipe)
    policy = PipelinePolicy(pipe, rank=2, **case.family.OPTIONS)
    adapter = {name: p.detach().clone() for name, p in policy.trainable().items()}
    step(policy)
    step(policy)
    after = weights(pipe)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    moved = [name for name, p in policy.trainable().items() if not torch.equal(p, adapter[name])]
    assert moved and len(moved) >= 0.9 * len(adapter)  # a layer that the output does not depend on stays


def test_peft_reads_the_saved_adapter(case, tmp_path):
    from peft import PeftModel

    policy = trained(case)
    policy.save(str(tmp_path))
    pipe, part = case.pipe(), policy._backbone._family.part
    setattr(pipe, part, PeftModel.from_pretrained(getattr(pipe, part), str(tmp_path)).eval())
    _same_samples(case, policy, pipe)


def test_the_pipeline_itself_reads_the_saved_adapter(case, tmp_path):
    pipe = case.pipe()
    if not hasattr(pipe, "load_lora_weights"):
        pytest.skip(f"{case.family.KIND} has no load_lora_weights")
    policy = trained(case)
    policy.save(str(tmp_path))
    pipe.load_lora_weights(str(tmp_path))
    _same_samples(case, policy, pipe)


def _same_samples(case: Case, policy: PipelinePolicy, pipe: Any) -> None:
    ours = policy.generate(PROMPTS[:1], SEEDS[:1], steps=3, guidance=case.family.GUIDANCE).latents
    start = case.call(case.pipe(), PROMPTS[0], SEEDS[0], 3, case.family.GUIDANCE)
    assert float((ours - start).abs().max()) > 1e-3 * float(start.abs().max())
    close(ours, case.call(pipe, PROMPTS[0], SEEDS[0], 3, case.family.GUIDANCE))


def test_full_tuning_trains_and_its_weights_load_as_diffusers_model(case, tmp_path):
    policy = case.policy(tuning="full")
    start = policy.generate(PROMPTS[:1], SEEDS[:1], steps=2, guidance=1.0).latents
    step(policy)
    policy.save(str(tmp_path))
    pipe, part = case.pipe(), policy._backbone._family.part
    setattr(pipe, part, type(getattr(pipe, part)).from_pretrained(str(tmp_path)).eval())
    own = case.call(pipe, PROMPTS[0], SEEDS[0], 2, 1.0)
    assert not torch.equal(own, start)
    close(policy.generate(PROMPTS[:1], SEEDS[:1], steps=2, guidance=1.0).latents, own)


def test_gradient_checkpointing_gives_the_same_gradients_or_is_refused_by_name(case):
    if "gradient_checkpointing" in getattr(case.family, "CANNOT", ()):
        with pytest.raises(ConfigError, match="no gradient checkpointing"):
            case.policy(gradient_checkpointing=True)
        return
    found = []
    for wanted in (False, True):
        policy = case.policy(gradient_checkpointing=wanted)
        latents, noising = noised(policy, 2)
        policy.predict(latents, noising, policy.encode(PROMPTS[:2])).square().mean().backward()
        found.append({name: p.grad for name, p in policy.trainable().items()})
    for name, gradient in found[0].items():
        assert (gradient is None) == (found[1][name] is None)
        if gradient is not None:
            torch.testing.assert_close(found[1][name], gradient)


def test_half_precision_weights_train_a_float32_adapter(case):
    policy = case.policy(weights="bfloat16", precision="bfloat16")
    assert all(p.dtype == torch.float32 for p in policy.trainable().values())
    module = getattr(policy._backbone._pipe, policy._backbone._family.part)
    assert any(p.dtype == torch.bfloat16 for p in module.parameters())
    latents, noising = noised(policy, 3)
    with torch.no_grad():
        found, wanted = (one.predict(latents, noising, one.encode(PROMPTS)) for one in (policy, case.policy()))
    assert float((found - wanted).norm() / wanted.norm()) < 0.03  # a number in bfloat16 is wrong by up to 0.004
    step(policy)
    made = policy.generate(PROMPTS[:2], SEEDS[:2], steps=2, guidance=case.family.GUIDANCE)
    assert made.latents.dtype == torch.float32 and policy.decode(made).tensor.isfinite().all()


def test_times_of_the_sampler_alone_can_be_trained_at(case):
    policy = case.policy(sampler_times=4)
    _, noising = noised(policy, 64)
    levels = policy._backbone._family.sigmas(4)[:-1]
    assert set(noising.sigma.tolist()) == set(levels.tolist())


def test_the_policy_contract_holds(case):
    check_policy(case.policy(), PROMPTS)


class Projection:
    """A joint encoder in the shape of CLAP: a fixed random projection of the clip, a hash of the words."""

    name, fingerprint, features = "projection", "projection", 6

    def embed_media(self, media: Media) -> Tensor:
        return self.embed_clips(media)[:, None]

    def embed_clips(self, media: Media) -> Tensor:
        flat = media.tensor.flatten(1)
        matrix = torch.randn(flat.shape[1], 6, generator=Generator().manual_seed(1))
        return nn.functional.normalize(flat @ matrix, dim=1)

    def embed_text(self, prompts: Sequence[str]) -> Tensor:
        rows = [torch.randn(6, generator=Generator().manual_seed(sum(map(ord, prompt)))) for prompt in prompts]
        return nn.functional.normalize(torch.stack(rows), dim=1)


@pytest.mark.parametrize("kind", ["instance", "set"])
def test_two_iterations_of_training_run(case, kind):
    policy = case.policy()
    before = copy.deepcopy({name: p.detach() for name, p in policy.trainable().items()})
    reward, contrast = (
        (ClapScore(Projection()), best_worst()) if kind == "instance" else (SetVendi(encoder=Projection()), Swap())
    )
    settings = TrainSettings(
        prompts_per_step=3, num_generations=2, rollout_steps=2, guidance=case.family.GUIDANCE, max_steps=2,
        learning_rate=1e-3, beta_calibration_updates=1,
    )  # fmt: skip
    trainer = Trainer(
        policy,
        (WeightedReward(reward, 1.0),),
        PROMPTS,
        contrast=contrast,
        objective=DPO(),
        settings=settings,
        credit=LeaveOneOut(),
    )
    reports = list(trainer.run(2))
    assert [report.step for report in reports] == [1, 2] or len(reports) == 2
    assert all(report.media.tensor.isfinite().all() for report in reports)
    assert _moved(before, policy.trainable())


def _moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
    return any(not torch.equal(after[name], value) for name, value in before.items())
