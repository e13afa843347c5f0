# Copyright (c) MONAI Consortium
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""The inferer of a transformer that predicts the codebook entries of a VQVAE."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn as nn
import torch.nn.functional as F

from monai.inferers.inferer import Inferer
from monai.networks.nets import VQVAE, DecoderOnlyTransformer
from monai.utils import optional_import
from monai.utils.ordering import Ordering

tqdm, has_tqdm = optional_import("tqdm", name="tqdm")

__all__ = ["VQVAETransformerInferer"]


class VQVAETransformerInferer(Inferer, nn.Module):
    """
    Trains, samples and judges images by a transformer that predicts the codebook entries of a :class:`VQVAE`, one after
    another (Tudosiu et al., https://arxiv.org/abs/2209.03177).

    Before the first entry stands a begin token, whose number is the VQVAE's ``num_embeddings``; the transformer has one
    token more than the codebook has entries.
    """

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def __call__(  # type: ignore[override]
        self,
        inputs: torch.Tensor,
        vqvae_model: VQVAE,
        transformer_model: DecoderOnlyTransformer,
        ordering: Ordering,
        condition: torch.Tensor | None = None,
        return_latent: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, tuple]:
        """
        Predict the entries of images, for training. Of a sequence longer than the transformer takes, a part is drawn.

        Args:
            inputs: images, (B, C, sizes).
            vqvae_model: turns images into entries, without gradient.
            transformer_model: predicts them.
            ordering: in which order the positions of the latent follow one another.
            condition: context of the transformer, (B, K, C).
            return_latent: whether to return the entries and the latent's size, too. Defaults to False.

        Returns:
            logits, (B, N, num_tokens), N at most ``max_seq_len``; if ``return_latent``, also the entries that they
            should predict, (B, N), and the spatial size of the latent
        """
        entries, size = _sequences(inputs, vqvae_model, ordering)
        tokens = F.pad(entries, (1, 0), value=vqvae_model.num_embeddings)[:, :-1].long()
        length, longest = tokens.shape[1], transformer_model.max_seq_len
        start = int(torch.randint(length + 1 - longest, size=(1,))) if length > longest else 0
        part = slice(start, start + longest)
        logits: torch.Tensor = transformer_model(x=tokens[:, part], context=condition)
        return (logits, entries[:, part], size) if return_latent else logits

    @torch.no_grad()
    def sample(
        self,
        latent_spatial_dim: tuple[int, int, int] | tuple[int, int],
        starting_tokens: torch.Tensor,
        vqvae_model: VQVAE,
        transformer_model: DecoderOnlyTransformer,
        ordering: Ordering,
        conditioning: torch.Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        verbose: bool = True,
    ) -> torch.Tensor:
        """
        Draw images.

        The transformer keeps the keys and values of earlier tokens, so that a step costs one token. Past its
        ``max_seq_len`` the window slides, and with it the position of every token: then each step costs the window.

        Args:
            latent_spatial_dim: spatial size of the latent.
            starting_tokens: begin tokens, (B, 1).
            vqvae_model: turns entries into images.
            transformer_model: predicts the entries.
            ordering: in which order the positions of the latent follow one another.
            conditioning: context of the transformer, (B, K, C).
            temperature: divides the logits. Defaults to 1.0.
            top_k: from how many of the likeliest tokens to draw, from all if None. With 1 the likeliest entry is taken.
            verbose: whether to show a progress bar. Defaults to True.

        Returns:
            images, (B, C, sizes)
        """
        next_logits = _cached_steps(transformer_model, starting_tokens.shape[0], conditioning)
        tokens = starting_tokens.long()
        for _ in _progress(math.prod(latent_spatial_dim), verbose):
            logits = next_logits(tokens)
            if temperature != 1.0:
                logits = logits / temperature
            drawn = torch.multinomial(_probabilities(logits, top_k, vqvae_model.num_embeddings), num_samples=1)
            tokens = torch.cat([tokens, drawn], dim=1)
        entries = tokens[:, 1:][:, ordering.get_revert_sequence_ordering()]
        return vqvae_model.decode_samples(entries.reshape(starting_tokens.shape[0], *latent_spatial_dim))

    @torch.no_grad()
    def get_likelihood(
        self,
        inputs: torch.Tensor,
        vqvae_model: VQVAE,
        transformer_model: DecoderOnlyTransformer,
        ordering: Ordering,
        condition: torch.Tensor | None = None,
        resample_latent_likelihoods: bool = False,
        resample_interpolation_mode: str = "nearest",
        verbose: bool = False,
    ) -> torch.Tensor:
        """
        Compute the log-likelihood of every entry of images, given the ones before it.

        Args:
            inputs: images, (B, C, sizes).
            vqvae_model: turns images into entries.
            transformer_model: predicts them.
            ordering: in which order the positions of the latent follow one another.
            condition: context of the transformer, (B, K, C).
            resample_latent_likelihoods: whether to bring the result to the size of the images. Defaults to False.
            resample_interpolation_mode: "nearest", "bilinear" or "trilinear". Defaults to "nearest".
            verbose: whether to show a progress bar where the sequence is longer than the transformer takes.
                Defaults to False.

        Returns:
            (B, sizes of the latent), or (B, 1, sizes of the images)

        Raises:
            ValueError: if the interpolation mode is another one.
        """
        if resample_latent_likelihoods and resample_interpolation_mode not in ("nearest", "bilinear", "trilinear"):
            raise ValueError(
                "resample_interpolation_mode should be 'nearest', 'bilinear' or 'trilinear', got "
                f"{resample_interpolation_mode!r}."
            )
        entries, size = _sequences(inputs, vqvae_model, ordering)
        tokens = F.pad(entries, (1, 0), value=vqvae_model.num_embeddings).long()
        window, targets = transformer_model.max_seq_len, tokens[:, 1:, None]
        first = transformer_model(x=tokens[:, : min(window, tokens.shape[1] - 1)], context=condition)
        logs = [first.log_softmax(-1).gather(2, targets[:, : first.shape[1]])[..., 0]]
        for end in _progress(targets.shape[1] - first.shape[1], verbose and first.shape[1] < targets.shape[1]):
            last = first.shape[1] + end + 1
            logits = transformer_model(x=tokens[:, last - window : last], context=condition)[:, -1]
            logs.append(logits.log_softmax(-1).gather(1, targets[:, last - 1]))
        result = torch.cat(logs, dim=1)[:, ordering.get_revert_sequence_ordering()].reshape(len(inputs), *size)
        if resample_latent_likelihoods:
            result = F.interpolate(result[:, None], size=inputs.shape[2:], mode=resample_interpolation_mode)
        return result


@torch.no_grad()
def _sequences(images: torch.Tensor, vqvae: VQVAE, ordering: Ordering) -> tuple[torch.Tensor, tuple[int, ...]]:
    """The entries of images in their order, (B, N), and the spatial size of the latent."""
    entries = vqvae.index_quantize(images)
    return entries.flatten(1)[:, ordering.get_sequence_ordering()], tuple(entries.shape[1:])


def _progress(steps: int, verbose: bool) -> Iterable[int]:
    out: Iterable[int] = tqdm(range(steps)) if verbose and has_tqdm else range(steps)
    return out


def _cached_steps(
    transformer: DecoderOnlyTransformer, batch_size: int, context: torch.Tensor | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """
    Make a function from sequences that grow, (B, N), to the logits of the token that follows, (B, num_tokens).

    A transformer that cannot decode on a cache is run on the whole sequence each time; so is one that attends to its
    own tokens in place of a context, or is in training somewhere and drops some of what it computes at random.
    """
    window, decoder, seen = transformer.max_seq_len, None, 0
    if _decodes_on_a_cache(transformer) and (context is not None or not transformer.with_cross_attention):
        decoder = transformer.cached(batch_size, context if transformer.with_cross_attention else None)

    def step(tokens: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        if decoder is None or tokens.shape[1] > window:
            out: torch.Tensor = transformer(x=tokens[:, -window:], context=context)[:, -1]
            return out
        new, seen = tokens[:, seen:], tokens.shape[1]
        logits: torch.Tensor = decoder(new)[:, -1]
        return logits

    return step


def _decodes_on_a_cache(transformer: nn.Module) -> bool:
    if not isinstance(transformer, DecoderOnlyTransformer) or any(part.training for part in transformer.modules()):
        return False
    return transformer.why_not_cached() is None


def _probabilities(logits: torch.Tensor, top_k: int | None, begin: int) -> torch.Tensor:
    """
    Probabilities of the next token, (B, num_tokens): never of the begin token, whose share the others do not get.

    Args:
        logits: (B, num_tokens).
        top_k: how many of the likeliest tokens keep their probability; all if None.
        begin: number of the begin token.
    """
    if top_k == 1:  # or else the begin token, where it is the likeliest, would leave nothing to draw from
        logits = logits.index_fill(1, torch.tensor([begin], device=logits.device), -math.inf)
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    probabilities = logits.softmax(-1)
    probabilities.narrow(1, begin, 1).zero_()
    return probabilities
