"""AudioLDM2 (`AudioLDM2Pipeline`): a 2D network of noise prediction over mel latents, 16 kHz mono.

A prompt becomes two sequences: the states of T5, and the few that GPT-2 makes from them and one vector of CLAP. Latents
are those of a mel-spectrogram (`dragon.policy.mel`).

The pipeline pads T5's states to the longest prompt of a call and gives guidance's empty prompt the same length; GPT-2
counts the padding as places, so what it makes depends on the other prompts of the call, and what it makes of the empty
prompt on the length of the full one. Here each prompt is encoded beside the empty one, as in a call with that prompt
alone, and brings the empty one's sequence along. The pipeline's own call, asked for several clips of a prompt, sorts
them by their CLAP score; here every sample stays at its seed's place.

GPT-2 is run here, because newer transformers have taken what the pipeline asks of it from `GPT2Model`, which is what
the published checkpoints hold.

Source: Liu et al. (2024), arXiv 2308.05734; the pipeline in diffusers.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from dragon.errors import ConfigError
from dragon.media import Cond
from dragon.policy.levels import trained_on_table
from dragon.policy.mel import MelClips
from dragon.policy.pipeline import Network, classifier_free, set_to

_TEXT_TOKENS = 128
_GENERATED = 8  # states of GPT-2, where its config does not say


class AudioLDM2:
    """seconds: length of the clips; None: the length that the network was trained on, 10.24. More is possible, at a
    quality that training gives no reason to expect.
    text_tokens: tokens of T5 that a condition has room for, by default 128 or what the tokenizer allows if less; a
    longer prompt is cut to them with a warning.
    """

    name, part = "audioldm2", "unet"
    text_parts = ("text_encoder", "text_encoder_2", "projection_model", "language_model")
    takes_negative = False  # GPT-2 reads the empty prompt beside every other
    targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    loudness = "as decoded, in [-1, 1] by the vocoder"

    def __init__(self, pipe: Any, *, seconds: float | None = None, text_tokens: int | None = None) -> None:
        if pipe.text_encoder_2.config.model_type != "t5":
            raise ConfigError(
                f"text_encoder_2 is a {pipe.text_encoder_2.config.model_type!r}; expected 't5'. Checkpoints that speak "
                "a transcript cannot be trained here: use one that makes sound or music from a description"
            )
        longest = int(pipe.tokenizer_2.model_max_length)
        text_tokens = min(_TEXT_TOKENS, longest) if text_tokens is None else text_tokens
        if not 1 <= text_tokens <= longest:
            raise ConfigError(f"text_tokens is {text_tokens}; expected 1 to {longest}, which the tokenizer allows")
        self._pipe, self._text_tokens = pipe, text_tokens
        self.scaling, self._times = trained_on_table(pipe.scheduler)
        self._clips = MelClips(pipe, seconds)
        self.rate: int | None = self._clips.rate
        self.event_shape = self._clips.event_shape

    def encode(self, prompt: str, device: torch.device) -> Cond:
        """text, mask: of T5. generated: of GPT-2; empty: what GPT-2 makes of "" in the same call."""
        clap, clap_mask = self._tokens(
            self._pipe.tokenizer, prompt, "max_length", self._pipe.tokenizer.model_max_length
        )
        vector = self._pipe.text_encoder.get_text_features(clap.to(device), attention_mask=clap_mask.to(device))
        vector = getattr(vector, "pooler_output", vector)[:, None]  # transformers < 5 gave the tensor
        tokens, mask = self._tokens(self._pipe.tokenizer_2, prompt, True, self._text_tokens)
        mask = mask.to(device)
        text = self._pipe.text_encoder_2(tokens.to(device), attention_mask=mask)[0]
        projected = self._pipe.projection_model(
            hidden_states=vector,
            hidden_states_1=text,
            attention_mask=mask.new_ones(len(mask), 1),
            attention_mask_1=mask,
        )
        generated = self._generated(projected.hidden_states, projected.attention_mask)
        room = self._text_tokens - mask.shape[1]
        return Cond(
            {
                "text": pad(text[:1], (0, 0, 0, room)),
                "mask": pad(mask[:1], (0, room)),
                "generated": generated[:1],
                "empty": generated[1:],
            }
        )

    def network(self, z: Tensor, time: Tensor, cond: Cond) -> Tensor:
        model = self._pipe.unet
        output: Tensor = model(
            z,
            time,
            encoder_hidden_states=cond.tensors["generated"],
            encoder_hidden_states_1=cond.tensors["text"],
            encoder_attention_mask_1=cond.tensors["mask"],
            return_dict=False,
        )[0]
        return output

    def guided(self, cond: Cond, empty: Cond, guidance: float) -> Network:
        nothing = Cond(dict(empty.tensors) | {"generated": cond.tensors["empty"]})
        return classifier_free(self.network, nothing, guidance)

    def schedule(self, steps: int) -> Any:
        return set_to(self._pipe.scheduler, steps)

    def sigmas(self, steps: int) -> Tensor:
        return self._times.levels(self.schedule(steps).timesteps)

    def draw_sigmas(self, count: int, generator: Generator, t_min: float, t_max: float) -> Tensor:
        return self._times.draw(count, generator, t_min, t_max)

    def decode(self, latents: Tensor) -> Tensor:
        return self._clips.decode(latents)

    def finish(self, clips: Tensor) -> Tensor:
        return clips

    def checkpoint(self) -> None:
        """Of the transformers' blocks, not of whole transformers.

        Those would be called with their arguments in another's places, the text's mask in that of self-attention
        (diffusers 0.42.1, `CrossAttnDownBlock2D` and its like in pipelines/audioldm2/modeling_audioldm2.py).
        """
        self._pipe.unet.enable_gradient_checkpointing()
        for part in self._pipe.unet.modules():
            if getattr(part, "has_cross_attention", False):
                part.gradient_checkpointing = False

    def _tokens(self, tokenizer: Any, prompt: str, padding: str | bool, limit: int) -> tuple[Tensor, Tensor]:
        """(2, l) tokens of the prompt and of "", and what of them is no padding."""
        whole = len(tokenizer(prompt).input_ids)
        if whole > limit:
            advice = f"; raise text_tokens, to at most {tokenizer.model_max_length}"
            warnings.warn(
                f"prompt of {whole} tokens cut to the {limit} that {type(tokenizer).__name__} may give {self.name}"
                f"{advice if limit < tokenizer.model_max_length else ''}: {prompt!r}",
                stacklevel=3,
            )
        made = tokenizer([prompt, ""], padding=padding, max_length=limit, truncation=True, return_tensors="pt")
        return made.input_ids, made.attention_mask

    def _generated(self, states: Tensor, mask: Tensor) -> Tensor:
        """(b, n, f) what the language model adds to `states`, each state taken as the next input: deterministic."""
        model = getattr(self._pipe.language_model, "transformer", self._pipe.language_model)
        count = getattr(model.config, "max_new_tokens", None) or _GENERATED
        for _ in range(count):
            last = model(inputs_embeds=states, attention_mask=mask, use_cache=False).last_hidden_state[:, -1:]
            states = torch.cat([states, last], 1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        return states[:, -count:]
