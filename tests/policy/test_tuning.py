"""Claims about tuning: what is trained, what the reference is, and that adapters are PEFT's own."""

from __future__ import annotations

import copy
import json
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from torch import nn

from dragon.errors import ConfigError, ShapeError
from dragon.policy import tuning
from dragon.policy.tuning import FullTuning, LoraTuning, swapped
from dragon.sharding import is_sharded, whole


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.drop = nn.Dropout(0.5)
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 4)])
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x):
        return self.blocks[1](self.drop(self.blocks[0](self.first(x).tanh()).tanh())) * self.scale


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def x():
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def lora(net, **changes):
    return LoraTuning(net, **{"rank": 2, "alpha": 4.0, "targets": ("first", "0"), "seed": 5, **changes})


def full(net):
    return FullTuning(net, config=json.dumps({"kind": "net"}))


@contextmanager
def no_calls_of_other_processes():
    """Gathering inside it is an error."""
    with patch("torch.distributed.tensor.DTensor.full_tensor", side_effect=AssertionError("gathered")):
        yield


def train(net, tuning, x, steps=3):
    optimiser = torch.optim.SGD(tuning.trainable().values(), lr=0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        net(x).square().mean().backward()
        optimiser.step()


@pytest.mark.parametrize("kind", [lora, full])
def test_before_training_policy_and_reference_are_the_starting_module(net, x, kind):
    start = copy.deepcopy(net).eval()(x)
    tuning = kind(net)
    with tuning.reference():
        assert torch.equal(net(x), start)
    assert torch.equal(net(x), start)


@pytest.mark.parametrize("kind", [lora, full])
def test_after_training_the_reference_is_still_the_starting_module_and_leaving_restores(net, x, kind):
    start = copy.deepcopy(net).eval()(x)
    tuning = kind(net)
    train(net, tuning, x)
    trained = net(x)
    assert not torch.allclose(trained, start)
    with tuning.reference():
        assert torch.equal(net(x), start)
        with tuning.reference():
            assert torch.equal(net(x), start)
        assert torch.equal(net(x), start)
    assert torch.equal(net(x), trained)
    with pytest.raises(RuntimeError), tuning.reference():
        raise RuntimeError
    assert torch.equal(net(x), trained)
    assert all(p.requires_grad for p in tuning.trainable().values())


@pytest.mark.parametrize("kind", [lora, full])
def test_a_look_at_the_reference_between_forward_and_backward_changes_no_gradient(net, x, kind):
    tuning = kind(net)
    train(net, tuning, x)
    values = {name: torch.zeros_like(p) for name, p in tuning.trainable().items()}
    grads = []
    for look in (False, True):
        net.zero_grad()
        loss = net(x).square().mean()
        if look:
            with torch.no_grad(), tuning.reference():
                net(x)
            with torch.no_grad(), swapped(tuning.trainable(), values):
                net(x)
        loss.backward()
        grads.append([p.grad.clone() for p in tuning.trainable().values()])
    assert all(torch.equal(a, b) and a.abs().max() > 0 for a, b in zip(*grads, strict=True))


def test_lora_trains_the_adapter_only(net, x):
    before = {name: p.clone() for name, p in net.named_parameters()}
    tuning = lora(net)
    assert sorted(tuning.trainable()) == [
        f"{layer}.lora_{m}.default.weight" for layer in ("blocks.0", "first") for m in "AB"
    ]
    train(net, tuning, x)
    after = {name.replace(".base_layer.", "."): p for name, p in net.named_parameters()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(p.grad is None for name, p in net.named_parameters() if "lora_" not in name)


def test_everything_is_in_eval_mode(net):
    lora(net)
    assert not any(part.training for part in net.modules())


def test_the_adapter_comes_from_its_seed_alone(net):
    torch.manual_seed(11)
    state = torch.get_rng_state()
    one, two, other = (lora(copy.deepcopy(net), seed=seed).trainable() for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    name = "first.lora_A.default.weight"
    assert torch.equal(one[name], two[name]) and not torch.equal(one[name], other[name])


def test_peft_itself_reads_what_lora_saves(net, x, tmp_path):
    from peft import PeftModel

    base = copy.deepcopy(net).eval()
    tuning = lora(net)
    train(net, tuning, x)
    tuning.save(str(tmp_path))
    assert {p.name for p in tmp_path.iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}
    assert torch.allclose(PeftModel.from_pretrained(base, str(tmp_path))(x), net(x), atol=1e-7)


@pytest.mark.parametrize("kind", [lora, full])
def test_save_then_load_gives_the_same_policy_to_the_bit(net, x, kind, tmp_path):
    fresh = copy.deepcopy(net)
    tuning = kind(net)
    train(net, tuning, x)
    tuning.save(str(tmp_path))
    start, other = copy.deepcopy(fresh).eval()(x), kind(fresh)
    other.load(str(tmp_path))
    assert torch.equal(fresh(x), net(x))
    with other.reference():
        assert torch.equal(fresh(x), start)


def test_full_weights_hold_buffers_and_config(net, tmp_path):
    from safetensors.torch import load_file

    full(net).save(str(tmp_path))
    assert load_file(tmp_path / "diffusion_pytorch_model.safetensors").keys() == net.state_dict().keys()
    assert json.loads((tmp_path / "config.json").read_text()) == {"kind": "net"}


def test_loading_what_does_not_fit_is_refused(net, tmp_path):
    fresh = copy.deepcopy(net)
    tuning = lora(net)
    with pytest.raises(ConfigError, match="does not exist"):
        tuning.load(str(tmp_path))
    tuning.save(str(tmp_path))
    with pytest.raises(ConfigError, match="'r': \\(2, 3\\)"):
        lora(copy.deepcopy(fresh), rank=3).load(str(tmp_path))
    with pytest.raises(ConfigError, match="2 missing"):
        lora(copy.deepcopy(fresh), targets=("first", "0", "1")).load(str(tmp_path))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(ConfigError, match="damaged"):
        tuning.load(str(tmp_path))


def test_wrong_lora_settings_are_refused_with_the_layers_that_exist(net):
    with pytest.raises(ConfigError, match="'to_q'.*blocks.0"):
        lora(net, targets=("to_q",))
    with pytest.raises(ConfigError, match="no LoRA targets"):
        lora(net, targets=())
    with pytest.raises(ConfigError, match="rank is 0"):
        lora(net, rank=0)


def test_swapped_refuses_other_names_and_shapes(net):
    parameters = full(net).trainable()
    values = {name: p.detach().clone() for name, p in parameters.items()}
    with (
        pytest.raises(ShapeError, match="1 parameter names differ"),
        swapped(parameters, values | {"x": values["first.bias"]}),
    ):
        pass
    with pytest.raises(ShapeError, match="first.bias"), swapped(parameters, values | {"first.bias": torch.zeros(3)}):
        pass


@pytest.mark.parametrize("kind", [lora, full])
def test_sharded_weights_are_tuned_seen_and_stored_like_whole_ones(net, x, kind, tmp_path, one_process):
    """With one process that has all shards; tests/test_sharding.py has two."""
    other = copy.deepcopy(net)
    tuning, sharded = kind(net), kind(other)
    sharded.shard()
    assert is_sharded(sharded.trainable()) and sharded.trainable().keys() == tuning.trainable().keys()
    before = {name: whole(p.detach()).clone() for name, p in sharded.trainable().items()}
    train(net, tuning, x)
    train(other, sharded, x)
    assert torch.allclose(other(x), net(x), atol=1e-6)
    with tuning.reference(), sharded.reference(), sharded.reference():
        assert torch.equal(other(x), net(x))
    trained = other(x)
    with swapped(sharded.trainable(), before), sharded.reference():
        start = other(x)
    with swapped(sharded.trainable(), before):
        assert torch.allclose(other(x), start, atol=1e-6) and not torch.allclose(start, trained)
    assert torch.equal(other(x), trained)
    stored = sharded.stored()
    assert not is_sharded(stored) and stored.keys() == tuning.stored().keys()
    with no_calls_of_other_processes():
        sharded.write(stored, str(tmp_path / "written"))
    sharded.save(str(tmp_path))
    assert all((tmp_path / "written" / f.name).read_bytes() == f.read_bytes() for f in tmp_path.glob("*.*"))
    with torch.no_grad():
        for p in sharded.trainable().values():
            p.zero_()
    sharded.load(str(tmp_path))
    assert torch.equal(other(x), trained)
    tuning.load(str(tmp_path))
    assert torch.allclose(net(x), trained, atol=1e-6)


def test_an_interrupt_while_weights_return_leaves_none_of_the_others_behind(monkeypatch) -> None:
    """Else an averaged weight would stand where the trained one was, and be saved as it."""
    parameters = {name: torch.nn.Parameter(torch.zeros(2)) for name in "abc"}
    storage = {name: p.data_ptr() for name, p in parameters.items()}
    give_back, calls = tuning._give_back, []

    def interrupted(some, before):
        calls.append(len(some))
        if len(calls) == 1:
            give_back({"a": some["a"]}, before)
            raise KeyboardInterrupt
        give_back(some, before)

    monkeypatch.setattr(tuning, "_give_back", interrupted)
    with pytest.raises(KeyboardInterrupt), tuning.swapped(parameters, {name: torch.ones(2) for name in "abc"}):
        pass
    assert len(calls) == 2 and {name: p.data_ptr() for name, p in parameters.items()} == storage
