"""ACE-Step 1.5 (`AceStepPipeline`): a flow transformer over text, lyrics and timbre, 48 kHz stereo.

Latents have time first, (frames, channels) at 25 Hz. A condition is the sequence of encoded lyrics, one token of
timbre (that of silence) and the encoded prompt; its length varies with the prompt, and the transformer attends to all
of it without a mask. Here it is padded to one length and the padding is masked, which gives the same output
(`_Padding`). Guidance is adaptive projected guidance (APG) with momentum, away from a learned null condition.

Turbo checkpoints have guidance and 8 steps (at shift 1, 2 or 3) distilled into them. They refuse guidance above 1, and
training draws the 8 times of their schedule. With other counts of steps the times are those of the pipeline's
formula, on which a turbo checkpoint was not trained: set `sampler_times` to the count if you sample that way.

Source: Gong et al. (2026), ACE-Step 1.5, arXiv 2602.00744; Sadat et al. (2024), APG, arXiv 2410.02416; the pipeline in
diffusers.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn

from dragon.diffusion import Both, Flow, flow_time, logit_normal_sigmas
from dragon.errors import ConfigError
from dragon.media import Cond
from dragon.policy.clips import in_seconds
from dragon.policy.levels import draw_of, flow_levels
from dragon.policy.pipeline import Network, at_peak, set_to

_DEFAULT_SECONDS = 60.0
_LYRIC_TOKENS = 2048
_TURBO_STEPS = 8
_MOMENTUM, _NORM_LIMIT = -0.75, 2.5  # of APG, as the pipeline has them


class AceStep:
    """seconds: length of the clips; None: 60, the pipeline's own. lyrics: of all clips; "" is the pipeline's default,
    "[Instrumental]" asks for music without a voice. vocal_language: of the lyrics, as a code. shift: of the sampler's
    times towards noise, t -> shift t / (1 + (shift - 1) t). text_tokens: length that prompts, in the model's template
    of about 50 tokens, are padded to; a longer one is cut to it, with a warning (the pipeline cuts at 256).
    cfg_interval_start, cfg_interval_end: guidance is on from and up to these shares of the way from noise to clip.
    """

    name, part = "ace_step", "transformer"
    text_parts = ("text_encoder", "condition_encoder")
    takes_negative = False  # guidance's empty condition is learned
    unused = ("audio_tokenizer", "audio_token_detokenizer")  # they encode other music
    targets = ("to_q", "to_k", "to_v", "to_out.0", "gate_proj", "up_proj", "down_proj")
    loudness = "each clip at a peak of -1 dBFS"
    scaling = Flow()

    def __init__(
        self,
        pipe: Any,
        *,
        seconds: float | None = None,
        lyrics: str = "",
        vocal_language: str = "en",
        shift: float = 3.0,
        text_tokens: int = 256,
        cfg_interval_start: float = 0.0,
        cfg_interval_end: float = 1.0,
    ) -> None:
        self._pipe = pipe
        self._shift, self._interval = shift, (cfg_interval_start, cfg_interval_end)
        self.rate: int | None = int(pipe.sample_rate)
        longest = pipe.condition_encoder.silence_latent.shape[1] / pipe.latents_per_second
        self._seconds = in_seconds(
            seconds, _DEFAULT_SECONDS, 1 / pipe.latents_per_second, longest, "the silence the checkpoint holds"
        )
        if not (math.isfinite(shift) and shift > 0):
            raise ConfigError(f"shift is {shift}; expected a number above 0, for example 1, 2 or 3")
        if not 0 <= cfg_interval_start <= cfg_interval_end <= 1:
            raise ConfigError(
                f"cfg_interval_start {cfg_interval_start}, cfg_interval_end {cfg_interval_end}; expected "
                "0 <= start <= end <= 1"
            )
        if text_tokens < 1:
            raise ConfigError(f"text_tokens is {text_tokens}; expected at least 1 (256 in the pipeline)")
        self._words: dict[str, Any] = {
            "lyrics": lyrics,
            "vocal_language": vocal_language,
            "audio_duration": self._seconds,
        }
        self._text_tokens = text_tokens
        lyric_tokens = len(pipe.tokenizer(pipe._format_prompt("", **self._words)[1]).input_ids)
        if lyric_tokens > _LYRIC_TOKENS:
            raise ConfigError(
                f"lyrics have {lyric_tokens} tokens and the model reads {_LYRIC_TOKENS}; shorten the option lyrics"
            )
        self._tokens = lyric_tokens + 1 + text_tokens  # 1 of timbre
        frames = math.ceil(self._seconds * pipe.latents_per_second)
        self.event_shape = (frames, int(pipe.transformer.config.audio_acoustic_hidden_dim))
        silence, _ = pipe.prepare_src_latents(torch.device("cpu"), torch.float32, latent_length=frames)
        self._context = torch.cat([silence, torch.ones_like(silence)], 2)  # 1: a frame to generate
        self._padding = _Padding.of(pipe.transformer)

    def encode(self, prompt: str, device: torch.device) -> Cond:
        pipe = self._pipe
        template = pipe._format_prompt(prompt, **self._words)[0]
        tokens = len(pipe.tokenizer(template).input_ids)
        if tokens > self._text_tokens:
            warnings.warn(
                f"prompt of {tokens} tokens with its template cut to the {self._text_tokens} of text_tokens; shorten "
                f"it or raise text_tokens: {prompt!r}",
                stacklevel=2,
            )
        text, text_mask, lyrics, lyrics_mask = pipe.encode_prompt(
            prompt, device=device, **self._words, max_text_length=self._text_tokens, max_lyric_length=_LYRIC_TOKENS
        )
        encoder = pipe.condition_encoder
        timbre = encoder.silence_latent[:, : math.ceil(30 * pipe.latents_per_second)]  # it listens to 30 s
        states, keep = encoder(
            text_hidden_states=text,
            text_attention_mask=text_mask,
            lyric_hidden_states=lyrics,
            lyric_attention_mask=lyrics_mask,
            refer_audio_acoustic_hidden_states_packed=timbre.to(device, encoder.dtype),
            refer_audio_order_mask=torch.zeros(1, dtype=torch.long, device=device),
        )
        missing = self._tokens - states.shape[1]
        return Cond(
            {"states": nn.functional.pad(states, (0, 0, 0, missing)), "keep": nn.functional.pad(keep, (0, missing))}
        )

    def network(self, z: Tensor, time: Tensor, cond: Cond) -> Tensor:
        model = self._pipe.transformer
        with self._padding.masked(cond.tensors["keep"]):
            output: Tensor = model(
                z,
                timestep=time,
                timestep_r=time,
                encoder_hidden_states=cond.tensors["states"],
                context_latents=self._context_on(z.device).expand(len(z), -1, -1),
                return_dict=False,
            )[0]
        return output

    def guided(self, cond: Cond, empty: Cond, guidance: float) -> Network:
        """Away from the learned null condition; `empty` has no part in it.

        Raises:
            ConfigError: guidance below 1, or above 1 for a checkpoint that has guidance distilled into it or holds no
                null condition.
        """
        if guidance < 1:
            raise ConfigError(f"guidance is {guidance}; ACE-Step's guidance starts at 1, which is none")
        if guidance == 1:
            return self.network
        if self._pipe.is_turbo:
            raise ConfigError(
                f"guidance is {guidance} for a turbo checkpoint of ACE-Step, which has guidance distilled into it; set "
                "guidance to 1, or take a base checkpoint"
            )
        null = getattr(self._pipe.condition_encoder, "null_condition_emb", None)
        if null is None:
            raise ConfigError(
                f"guidance is {guidance} and the condition encoder of this checkpoint holds no null_condition_emb; set "
                "guidance to 1, or take a base checkpoint"
            )
        states = cond.tensors["states"]
        nothing = Cond(dict(cond.tensors) | {"states": null.detach().to(states).expand_as(states)})
        return _projected(self.network, nothing, guidance, self._interval)

    def schedule(self, steps: int) -> Any:
        times = self._pipe._get_timestep_schedule(steps, self._shift, dtype=torch.float32)
        return set_to(self._pipe.scheduler, sigmas=times.tolist())

    def sigmas(self, steps: int) -> Tensor:
        return flow_levels(self.schedule(steps).sigmas)

    def draw_sigmas(self, count: int, generator: Generator, t_min: float, t_max: float) -> Tensor:
        if self._pipe.is_turbo:
            return self._draw_turbo(count, generator, t_min, t_max)
        return logit_normal_sigmas(count, generator, mean=-0.4, std=1.0, t_min=t_min, t_max=t_max)

    def _draw_turbo(self, count: int, generator: Generator, t_min: float, t_max: float) -> Tensor:
        levels = self.sigmas(_TURBO_STEPS)[:-1]
        times = flow_time(levels)
        levels = levels[(times >= t_min) & (times < t_max)]
        if not len(levels):
            raise ConfigError(
                f"t_min {t_min}, t_max {t_max} leave none of the {_TURBO_STEPS} times that a turbo checkpoint knows: "
                f"{[round(t, 3) for t in times.tolist()]}"
            )
        return draw_of(levels, count, generator)

    def decode(self, latents: Tensor) -> Tensor:
        clips: Tensor = self._pipe.vae.decode(latents.transpose(1, 2)).sample
        return clips

    def finish(self, clips: Tensor) -> Tensor:
        return at_peak(clips)

    @functools.lru_cache(maxsize=4)  # noqa: B019  as long-lived as the policy
    def _context_on(self, device: torch.device) -> Tensor:
        return self._context.to(device)


def _projected(network: Network, nothing: Cond, guidance: float, interval: tuple[float, float]) -> Network:
    """Adaptive projected guidance, one call of 2b rows; its momentum is of one roll-out, and each row's own.

    The difference of both outputs, with the momentum of earlier steps, is limited in norm and made orthogonal to the
    conditional output, channel by channel over time.
    """
    from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance

    buffer = MomentumBuffer(momentum=_MOMENTUM)
    both = Both(network, nothing, Cond.cat)
    everywhere = interval[0] <= 0 and interval[1] >= 1

    def guided(z: Tensor, time: Tensor, cond: Cond) -> Tensor:
        # a look at the time would wait for the GPU
        if not everywhere and not interval[0] <= 1 - float(time[0]) <= interval[1]:
            return network(z, time, cond)
        conditional, null = (output.float() for output in both(z, time, cond))
        output: Tensor = normalized_guidance(
            conditional,
            null,
            guidance - 1,
            momentum_buffer=buffer,
            eta=0.0,
            norm_threshold=_NORM_LIMIT,
            use_original_formulation=True,
            norm_dim=(1,),
        )
        return output

    return guided


def _channels_last(conv: nn.Module, args: Any, output: Tensor) -> Tensor:
    """(b, c, t) with the channels next to each other in memory.

    Left as it is, this layout would go through all blocks, and the linear layers of frozen weights could not take all
    rows of a batch as one matrix; nor would frozen weights give the bits of ones that are not.
    """
    return output.mT.contiguous().mT


class _Padding:
    """Tells the transformer's blocks which tokens of the condition are padding.

    The blocks take a mask and the transformer hands them none. A hook on each block fills it in; under gradient
    checkpointing it is an argument of the block instead, since blocks run again in a backward pass, when other prompts
    may have gone through the network.
    """

    @classmethod
    def of(cls, model: Any) -> _Padding:
        """The network's own: a second policy of a pipeline adds no hooks."""
        if not hasattr(model, "_dragon_padding"):
            model._dragon_padding = cls(model)
            model.proj_in_conv.register_forward_hook(_channels_last)
        found: _Padding = model._dragon_padding
        return found

    def __init__(self, model: Any) -> None:
        self._model = model
        self._keep: Tensor | None = None
        self._again: Callable[..., Any] | None = None
        for block in model.layers:
            block.register_forward_pre_hook(self._fill_in, with_kwargs=True)

    @contextmanager
    def masked(self, keep: Tensor) -> Iterator[None]:
        """Inside it the network reads only tokens with `keep` (b, l)."""
        model = self._model
        if model.gradient_checkpointing and model._gradient_checkpointing_func != self._checkpointed:
            self._again, model._gradient_checkpointing_func = model._gradient_checkpointing_func, self._checkpointed
        self._keep = keep[:, None, None]
        try:
            yield
        finally:
            self._keep = None

    def _fill_in(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._keep is None or "encoder_attention_mask" not in kwargs:
            return None
        return args, kwargs | {"encoder_attention_mask": self._keep}

    def _checkpointed(self, block: nn.Module, *args: Any) -> Any:
        *others, mask = args
        assert self._again is not None
        return self._again(block, *others, mask if self._keep is None else self._keep)
