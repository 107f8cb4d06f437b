"""The examples of docs/own_model.md run as printed, are checked as printed, and train."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from dragon import cli
from dragon.testing import check_policy

PAGE = (Path(__file__).parents[1] / "docs" / "own_model.md").read_text(encoding="utf-8")
WEIGHTS = ["--options", "{weights: my_model.safetensors}", "--prompt", "slow piano", "fast drums", "slow"]


def files() -> dict[str, str]:
    """Name -> text of every block that begins with its file's name, "at the end of" it in order."""
    found: dict[str, str] = {}
    for kind, text in re.findall(r"```(python|yaml)\n(.*?)```", PAGE, flags=re.S):
        named = re.match(r"# (?:at the end of )?(\w+\.(?:py|yaml))\n", text)
        if named:
            found[named[1]] = found.get(named[1], "") + text
        else:
            assert kind == "yaml", f"a block of Python without a file's name: {text[:60]!r}"
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in files().items():
        (tmp_path / name).write_text(text)
    (tmp_path / "prompts.txt").write_text("slow piano\nfast drums\nfast piano\nslow drums\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in files():
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    return tmp_path


def run(path: Path, name: str) -> dict[str, object]:
    space: dict[str, object] = {"__name__": name}
    exec(compile(path.read_text(), path.name, "exec"), space)
    return space


def tiny_dit(folder: Path) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
            patch_size=2, norm_num_groups=1,
        )  # fmt: skip
        vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
        with torch.no_grad():
            for p in network.parameters():
                if not p.any():  # zeros hide faults
                    p.normal_(0, 0.2)
    DiTPipeline(network, vae, DDIMScheduler()).save_pretrained(folder)
    index = folder / "model_index.json"  # where the published pipeline has its classes
    index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": {3: "drum", 5: "piano", 8: "choir"}}))


def test_every_named_file_is_on_the_page():
    assert set(files()) == {
        "my_family.py", "test_my_family.py", "my_model.py", "train.yaml", "bright.py", "my_policy.py",
    }  # fmt: skip


def test_a_family_is_the_pipelines_own_call_and_keeps_the_contract(folder: Path, capsys):
    tiny_dit(folder / "my_dit")
    space = run(folder / "test_my_family.py", "test_my_family")
    space["test_a_sample_is_the_pipelines_own"]()  # type: ignore[operator]
    [command] = re.findall(r"dragon check policy (pipeline.*)", PAGE)
    arguments = ["check", "policy", *re.findall(r"'[^']*'|\S+", command), "--tuning.rank", "2"]
    assert cli.main([word.strip("'") for word in arguments]) == 0
    text = capsys.readouterr().out
    assert "policy 'dit' keeps its contract" in text and "latents 4 x 8 x 8, clips 3 x 8 x 8" in text


def test_a_pipeline_class_of_ones_own_is_loaded_by_a_function(folder: Path, capsys):
    tiny_dit(folder / "my_dit")
    arguments = ["check", "policy", "my_family.py:my_policy", "--options", "{folder: my_dit}", "--tuning.rank", "3"]
    assert cli.main([*arguments, "--prompt", "drum", "piano"]) == 0
    found = re.search(r"trained: ([\d,]+) parameters", capsys.readouterr().out)
    assert found and int(found[1].replace(",", "")) == 4 * 2 * 3 * 16  # 4 layers of 16 x 16


def test_a_backbone_keeps_the_contract_and_trains(folder: Path, capsys):
    run(folder / "my_model.py", "__main__")
    assert cli.main(["check", "policy", "my_model.py:MyPolicy", *WEIGHTS, "--listen", "heard"]) == 0
    text = capsys.readouterr().out
    assert "latents 4 x 8, clips 1 x 8000 at 8000 Hz (1 s)" in text and "heard/0002.wav" in text
    flags = ["--max_steps", "2", "--evaluation.prompts", "2", "--rollout.prompts_per_step", "2"]
    assert cli.main(["train", "train.yaml", *flags]) == 0
    assert (folder / "runs" / "mine" / "final" / "adapter_model.safetensors").stat().st_size > 0


def test_the_protocol_itself_is_enough(folder: Path, capsys):
    run(folder / "my_model.py", "__main__")
    assert cli.main(["check", "policy", "my_policy.py:MyPolicy", *WEIGHTS]) == 0
    assert "load brings back what save wrote" in capsys.readouterr().out
    text = (folder / "train.yaml").read_text().replace("my_model.py:", "my_policy.py:")
    (folder / "other.yaml").write_text(text.replace("tuning: {rank: 4, alpha: 4}\n", ""))
    flags = ["--max_steps", "2", "--evaluation.prompts", "2", "--rollout.prompts_per_step", "2"]
    assert cli.main(["train", "other.yaml", *flags, "--output_dir", "runs/other"]) == 0
    assert (folder / "runs" / "other" / "final" / "mine.safetensors").stat().st_size > 0


def test_both_ways_give_the_same_predictions(folder: Path):
    """The second implementation of the backbone's parts is the page's own."""
    run(folder / "my_model.py", "__main__")
    made = []
    for name in ("my_model", "my_policy"):
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        policy = module.MyPolicy("my_model.safetensors")
        check_policy(policy, ["slow piano", "fast drums"])
        batch = policy.generate(["slow piano", "fast drums"], [1, 2], steps=4, guidance=1.5)
        noising = policy.draw_noising(batch.latents, torch.Generator().manual_seed(3))
        made.append((policy, noising))
    (one, noising), (other, _) = made
    latents = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        first, second = (p.predict(latents, noising, p.encode(["slow piano", "fast drums"])) for p in (one, other))
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.target(latents, noising), other.target(latents, noising))
