"""Claims about the built-in model as a policy, on a tiny random pipeline of the same classes."""

from __future__ import annotations

import copy

import pytest
import torch

from dragon.errors import ConfigError
from dragon.mini import load_pipeline, random_pipeline
from dragon.policy import MiniPolicy
from dragon.protocols import Policy

PROMPTS = ["slow piano", "fast drums", "slow piano", "a flute"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved random pipeline (`random_pipeline` has no layer of zeros, so every gradient is there to be seen)."""
    path = tmp_path_factory.mktemp("pipeline")
    random_pipeline(seed=0, width=32, layers=1).save_pretrained(path)
    return str(path)


def lora(folder, **changes):
    return MiniPolicy(folder, **{"rank": 2, "alpha": 4.0, **changes})


def full(folder, **changes):
    return MiniPolicy(folder, tuning="full", **changes)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sample(policy, prompts=PROMPTS, seeds=(1, 2, 3, 4), guidance=2.0):
    return policy.generate(list(prompts), list(seeds), steps=3, guidance=guidance).latents


def train(policy, steps=2):
    """Plain denoising steps on random latents."""
    optimiser = torch.optim.AdamW(policy.trainable().values(), lr=1e-2)
    latents, cond = torch.randn(4, *policy.event_shape, generator=generator()), policy.encode(PROMPTS)
    for step in range(steps):
        noising = policy.draw_noising(latents, generator(step))
        optimiser.zero_grad()
        (policy.predict(latents, noising, cond) - policy.target(latents, noising)).square().mean().backward()
        optimiser.step()


def parameters(pipeline):
    """Of all parts, under the names they had before an adapter wrapped them."""
    parts = {"text": pipeline.text_encoder, "denoiser": pipeline.denoiser, "codec": pipeline.codec}
    return {
        f"{part}.{name.replace('.base_layer.', '.')}": value.detach().clone()
        for part, module in parts.items()
        for name, value in module.state_dict().items()
        if "lora_" not in name
    }


def test_it_is_a_policy(folder):
    as_protocol: Policy = lora(folder)
    assert as_protocol.name == "mini"


@pytest.mark.parametrize("kind", [lora, full])
def test_before_training_policy_reference_and_plain_pipeline_agree(folder, kind):
    policy = kind(folder)
    rollout = sample(policy)
    with policy.reference():
        assert torch.equal(sample(policy), rollout)
    # second implementation: Euler steps of the flow z' = z + (t' - t) u with guidance, without our sampler
    pipeline = load_pipeline(folder)
    t = torch.linspace(0.999, 0, 4).tolist()
    z = torch.stack([torch.randn(policy.event_shape, generator=generator(seed)) for seed in (1, 2, 3, 4)]) * t[0]
    (text, mask), (empty, empty_mask) = pipeline.encode_prompt(PROMPTS), pipeline.encode_prompt([""] * 4)
    with torch.no_grad():
        for now, then in zip(t[:-1], t[1:], strict=True):
            time = torch.full((4,), now)
            u, u0 = pipeline.denoiser(z, time, text, mask), pipeline.denoiser(z, time, empty, empty_mask)
            z = z + (then - now) * (u0 + 2.0 * (u - u0))
    assert torch.allclose(rollout, z, atol=2e-4 * float(z.abs().max()))


@pytest.mark.parametrize("kind", [lora, full])
def test_training_moves_the_policy_and_the_reference_stays(folder, kind):
    policy = kind(folder)
    start = sample(policy)
    train(policy)
    moved = sample(policy)
    assert (moved - start).abs().max() > 1e-3
    with policy.reference():
        assert torch.equal(sample(policy), start)
    assert torch.equal(sample(policy), moved)


def test_training_with_lora_changes_the_adapter_only(folder):
    pipeline = load_pipeline(folder)
    before = parameters(pipeline)
    policy = MiniPolicy(pipeline, rank=2, alpha=4.0)
    adapter = {name: p.detach().clone() for name, p in policy.trainable().items()}
    train(policy)
    after = parameters(pipeline)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    moved = [name for name, p in policy.trainable().items() if not torch.equal(p, adapter[name])]
    assert len(moved) == len(adapter)
    layers = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in adapter}
    assert layers == {"to_qkv", "to_out", "cross_q", "cross_kv", "cross_out", "ff_in", "ff_out"}


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_only_what_is_trained_asks_for_gradients_and_nothing_is_in_train_mode(folder, tuning):
    pipeline = load_pipeline(folder)
    policy = MiniPolicy(pipeline, tuning=tuning)
    parts = (pipeline.text_encoder, pipeline.denoiser, pipeline.codec)
    asking = {id(p) for part in parts for p in part.parameters() if p.requires_grad}
    assert asking == {id(p) for p in policy.trainable().values()}
    assert not any(module.training for part in parts for module in part.modules())


def test_peft_itself_reads_the_adapter(folder, tmp_path):
    from peft import PeftModel

    policy = lora(folder)
    train(policy)
    policy.save(str(tmp_path))
    pipeline = load_pipeline(folder)
    other = PeftModel.from_pretrained(copy.deepcopy(pipeline.denoiser), str(tmp_path)).eval()
    latents, cond = torch.randn(4, *policy.event_shape, generator=generator()), policy.encode(PROMPTS)
    noising = policy.draw_noising(latents, generator(1))
    t = noising.sigma / (1 + noising.sigma)
    z = (1 - t)[:, None, None] * latents + t[:, None, None] * noising.noise
    with torch.no_grad():
        ours = policy.predict(latents, noising, cond)
        theirs = other(z, t, cond.tensors["text"], cond.tensors["mask"])
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_full_weights_load_as_a_denoiser(folder, tmp_path):
    policy = full(folder)
    train(policy)
    policy.save(str(tmp_path))
    denoiser = type(load_pipeline(folder).denoiser).from_pretrained(str(tmp_path))
    stored = dict(denoiser.named_parameters())
    assert all(torch.equal(stored[name], p) for name, p in policy.trainable().items())


@pytest.mark.parametrize("kind", [lora, full])
def test_save_then_load_gives_the_same_samples(folder, kind, tmp_path):
    policy, other = kind(folder), kind(folder)
    train(policy)
    policy.save(str(tmp_path))
    other.load(str(tmp_path))
    assert torch.equal(sample(other), sample(policy))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_sample_does_not_depend_on_its_batch(folder, guidance):
    policy = lora(folder)
    whole = sample(policy, guidance=guidance)
    for rows in ([0], [3, 1], [2, 0, 1]):
        part = sample(policy, [PROMPTS[i] for i in rows], [i + 1 for i in rows], guidance=guidance)
        assert (part - whole[rows]).norm() <= 1e-5 * whole[rows].norm()


def test_a_prompt_is_encoded_once(folder):
    pipeline = load_pipeline(folder)
    calls: list[list[str]] = []
    encode = pipeline.encode_prompt
    pipeline.encode_prompt = lambda prompts: calls.append(list(prompts)) or encode(prompts)
    policy = MiniPolicy(pipeline)
    first = policy.encode(PROMPTS)
    again = policy.encode(PROMPTS[::-1])
    assert sorted(calls) == sorted([[prompt] for prompt in set(PROMPTS)])
    assert torch.equal(first.tensors["text"].flip(0), again.tensors["text"])
    assert not first.tensors["text"].requires_grad


@pytest.mark.filterwarnings("error:Mismatch dtype")  # torch: rms_norm is not fused
@pytest.mark.parametrize(("precision", "near"), [("bfloat16", 0.05), ("float16", 0.005)])
def test_low_precision_is_near_and_everything_it_returns_is_single(folder, precision, near):
    exact, low = lora(folder), lora(folder, precision=precision)
    a, b = sample(exact), sample(low)
    assert b.dtype == torch.float32 and not torch.equal(a, b)
    assert (a - b).norm() < near * a.norm()  # bfloat16 keeps 8 bits: 0.4 % a layer; float16 11
    latents, cond = a, exact.encode(PROMPTS)
    noising = exact.draw_noising(latents, generator())
    c, d = (policy.predict(latents, noising, cond) for policy in (exact, low))
    assert d.dtype == torch.float32 and not torch.equal(c, d)
    assert (c - d).norm() < near * c.norm()
    d.square().mean().backward()
    assert {p.grad.dtype for p in low.trainable().values() if p.grad is not None} == {torch.float32}


def test_float16_without_a_scaled_loss_would_lose_small_gradients(folder):
    """The loss of one pair among thousands: its gradient is below float16's smallest number, and the scale lifts it."""
    exact, low = lora(folder), lora(folder, precision="float16")

    def gradient(policy, scale):
        latents, cond = torch.randn(4, *policy.event_shape, generator=generator()), policy.encode(PROMPTS)
        noising = policy.draw_noising(latents, generator())
        loss = 1e-6 * (policy.predict(latents, noising, cond) - policy.target(latents, noising)).square().mean()
        (scale * loss).backward()
        found = torch.cat([p.grad.flatten() / scale for p in policy.trainable().values()])
        for p in policy.trainable().values():
            p.grad = None
        return found

    wanted = gradient(exact, 1.0)
    assert (gradient(low, 1.0) - wanted).norm() > 0.5 * wanted.norm()
    assert (gradient(low, 2.0**16) - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_gradient_checkpointing_keeps_less_and_gives_the_same_gradients(tuning, precision):
    def trained(checkpointing):
        pipeline = random_pipeline(seed=0, width=32, layers=4)
        policy = MiniPolicy(pipeline, tuning=tuning, precision=precision, gradient_checkpointing=checkpointing)
        latents, cond = torch.randn(4, *policy.event_shape, generator=generator()), policy.encode(PROMPTS)
        noising = policy.draw_noising(latents, generator())
        kept = {}  # bytes by storage: what one forward pass leaves for the backward pass

        def keep(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            prediction = policy.predict(latents, noising, cond)
        (prediction - policy.target(latents, noising)).square().mean().backward()
        gradients = torch.cat([p.grad.flatten() for p in policy.trainable().values()])
        with torch.no_grad():
            rollout = sample(policy)
        return sum(kept.values()), gradients, rollout

    (much, plain, rollout), (little, again, same) = trained(False), trained(True)
    assert plain.norm() > 0
    torch.testing.assert_close(again, plain, rtol=1e-6, atol=1e-6)
    assert torch.equal(same, rollout)
    assert little < 0.4 * much  # of the built-in model, six blocks of width 256: 2.7 of 75 MiB (LoRA), 6.1 of 88 (full)


def test_clips_are_five_seconds_of_mono_sound(folder):
    policy = lora(folder)
    media = policy.decode(policy.generate(PROMPTS[:2], [0, 1], steps=2, guidance=1.0))
    assert media.tensor.shape == (2, 1, 81920) and media.rate == 16000
    assert media.tensor.dtype == torch.float32 and media.tensor.abs().max() <= 1 and media.tensor.isfinite().all()
    assert not media.tensor.requires_grad


def test_training_times_stay_in_the_range_asked_for(folder):
    sigma = lora(folder, t_min=0.35).draw_noising(torch.zeros(500, 80, 64), generator()).sigma
    t = sigma / (1 + sigma)
    assert 0.35 - 1e-6 < t.min() < 0.4 and 0.9 < t.max() < 1


def test_wrong_settings_are_refused(folder):
    with pytest.raises(ConfigError, match="tuning is 'dora'"):
        lora(folder, tuning="dora")
    with pytest.raises(ConfigError, match="'to_q'.*to_qkv"):
        lora(folder, targets=("to_q",))
    with pytest.raises(ConfigError, match="t_min"):
        lora(folder, t_min=1.0, t_max=0.0)
    with pytest.raises(ConfigError, match="precision is 'half'.*'float16'"):
        lora(folder, precision="half")


def test_a_pipeline_in_half_precision_is_computed_in_single(folder):
    pipeline = load_pipeline(folder)
    for part in (pipeline.text_encoder, pipeline.denoiser, pipeline.codec):
        part.half()
    policy = MiniPolicy(pipeline)
    assert {p.dtype for p in pipeline.denoiser.parameters()} == {torch.float32}
    assert sample(policy).dtype == torch.float32
