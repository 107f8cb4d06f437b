"""The Frechet distance beside the package frechet-audio-distance: values, and time from files to a number.

Used by benchmarks/scoring_folders.py --compare. The package imports laion_clap, which asks a hub for the tokenizers and
a text model: `local_hub` writes tiny ones where they are looked for. A package's number may be an
error instead; the table says so.
"""

from __future__ import annotations

import contextlib
import io
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

WEIGHTS = "music_audioset_epoch_15_esc_90.14.pt"  # the name that the package looks for
CLIPS = 16  # a side
D = 512
CELLS = (  # frames, factor, common level, type
    (2000, 1.0, 0.0, "float64"),
    (2000, 1e3, 0.0, "float64"),
    (2000, 1.0, 0.0, "float32"),
    (2000, 1.0, 100.0, "float32"),
    (64, 1.0, 0.0, "float64"),
    (64, 1e3, 0.0, "float64"),
    (256, 1.0, 0.0, "float64"),
    (256, 1e3, 0.0, "float64"),
)


def local_hub(folder: Path) -> None:
    """roberta-base, bart-base and bert-base-uncased with a few words, in the form of a hub's cache."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaModel

    def snapshot(name: str) -> Path:
        place = folder / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("0" * 40)
        found = place / "snapshots" / ("0" * 40)
        found.mkdir(parents=True)
        return found

    settings = RobertaConfig(vocab_size=300, num_hidden_layers=1, max_position_embeddings=514, type_vocab_size=1)
    for name in ("roberta-base", "facebook/bart-base"):
        words, place = ByteLevelBPETokenizer(), snapshot(name)
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        words.train_from_iterator(["slow fast piano music"], vocab_size=300, special_tokens=special)
        words.save_model(str(place))
        (place / "tokenizer_config.json").write_text('{"tokenizer_class": "RobertaTokenizer"}')
        RobertaModel(settings).save_pretrained(place)
    bert = snapshot("bert-base-uncased")
    (bert / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]))
    (bert / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')


def write_weights(folder: Path) -> Path:
    """HTSAT-base as LAION's file has it, random, of a size that keeps different clips different."""
    import laion_clap
    import torch

    with contextlib.redirect_stdout(io.StringIO()):
        state = laion_clap.CLAP_Module(enable_fusion=False, device="cpu", amodel="HTSAT-base").model.state_dict()
    generator = torch.Generator().manual_seed(0)
    for name, value in state.items():
        if name.endswith("bn0.running_mean"):
            value.fill_(-40.0)
        elif name.endswith("bn0.running_var"):
            value.fill_(400.0)
        elif value.ndim > 1 and value.is_floating_point() and "extractor" not in name and "attn_mask" not in name:
            value.copy_(torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5)
    state["text_branch.embeddings.position_ids"] = torch.arange(514)[None]  # the package deletes it, unasked
    folder.mkdir(parents=True)
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, folder / WEIGHTS)
    return folder / WEIGHTS


def values(package: Any) -> list[dict[str, Any]]:
    """Relative errors and CPU seconds on the same frames, whose means and spreads differ by a little."""
    from dragon.rewards.frechet import frechet_distance

    rows = []
    for n, factor, level, dtype in CELLS:
        rng = np.random.default_rng(n)
        spread = 1 / np.sqrt(1 + np.arange(D))
        x = (factor * (level + rng.standard_normal((n, D)) * spread)).astype(dtype)
        y = (factor * (level + 0.05 + rng.standard_normal((n, D)) * 1.1 * spread)).astype(dtype)
        truth = by_singular_values(x.astype(np.float64), y.astype(np.float64))
        row: dict[str, Any] = {"n": n, "d": D, "factor": factor, "level": level, "dtype": dtype, "truth": truth}
        start = time.process_time()
        row["ours"] = {"relative_error": float(frechet_distance(x, y)) / truth - 1}
        row["ours"]["seconds"] = time.process_time() - start
        row["package"] = theirs(package, x, y, truth)
        rows.append(row)
    return rows


def theirs(package: Any, x: np.ndarray, y: np.ndarray, truth: float) -> dict[str, Any]:
    """As the package's own `score` does it from stored embeddings."""
    start = time.process_time()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            statistics = package.calculate_embd_statistics(x), package.calculate_embd_statistics(y)
            found = float(package.calculate_frechet_distance(*statistics[0], *statistics[1]))
    except ValueError as error:  # `score` prints it and returns -1
        return {"error": str(error), "seconds": time.process_time() - start}
    return {"relative_error": found / truth - 1, "seconds": time.process_time() - start}


def by_singular_values(x: np.ndarray, y: np.ndarray) -> float:
    """Independent of both: the nuclear norm of the product of all centred frames, by numpy, float64."""
    a, b = x - x.mean(axis=0), y - y.mean(axis=0)
    nuclear = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    spread = np.square(a).sum() / (len(a) - 1) + np.square(b).sum() / (len(b) - 1)
    return float(np.square(x.mean(0) - y.mean(0)).sum() + spread - 2 * nuclear / np.sqrt((len(a) - 1) * (len(b) - 1)))


def folders(package: Any, weights: Path, generated: Path, reference: Path) -> dict[str, Any]:
    """Both from the same files by the same weights: CPU seconds in turn, distances, the largest gap of a vector."""
    from dragon.encoders import get_encoder
    from dragon.measure.embed import embed_folder
    from dragon.measure.scores import score

    encoder = get_encoder({"name": "clap-pt", "options": {"weights": str(weights)}})
    stored = weights.parent / "vectors.npy"
    start = time.process_time()
    result = score(generated, reference, ["fad"], encoder=encoder, cache=None)
    ours = time.process_time() - start
    start = time.process_time()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        distance = float(package.score(str(reference), str(generated), eval_embds_path=str(stored)))
    seconds = time.process_time() - start
    mine = embed_folder(generated, [encoder])[0].clips().numpy()
    other = np.load(stored)
    nearest = np.abs(other[:, None] - mine[None]).max(axis=2).min(axis=1)  # its order is the file system's
    return {
        "clips": CLIPS,
        "ours": {"value": float(result.values[0]), "seconds": ours},
        "package": {"value": distance, "seconds": seconds},
        "largest_gap": float(nearest.max()),
        "spread": float(mine.std(axis=0).max()),
    }


def compare(place: Path, write_clips: Any) -> dict[str, Any]:
    """Everything, in one process on one thread. The hub's cache must lie in `place` / "hub" by now."""
    from frechet_audio_distance import FrechetAudioDistance

    weights = write_weights(place / "weights")
    write_clips(place / "generated", CLIPS, 0, brightness=0.5)
    write_clips(place / "reference", CLIPS, 1, brightness=0.3)
    with contextlib.redirect_stdout(io.StringIO()):
        package = FrechetAudioDistance(
            ckpt_dir=str(weights.parent), model_name="clap", submodel_name="music_audioset", sample_rate=48_000
        )
    found: dict[str, Any] = {"values": values(package)}
    return found | {"folders": folders(package, weights, place / "generated", place / "reference")}
