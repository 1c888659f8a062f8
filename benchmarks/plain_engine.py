"""The homepage as a straightforward author of a server writes it: the same weights in ordinary torch modules.

What it shares with `frontrow serve` is the page code: requests checked, candidates retrieved and scored, rows ranked,
the page assembled. What it does without: folded tables, kernels of its own, ragged batches, the last block for last
tokens only, anything kept of members between requests. All that the peers know of the engine's inside is in this file.
Shape letters: B members, L longest history, C encoded columns, M d_model, H heads, D vector width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..foundation.model import FoundationModel
from ..foundation.transformer import Block
from ..serving.homepage import HomepageEngine, Page, Ranked
from ..serving.requests import PageRequest, Prepared
from ..serving.store import Store


class PlainModel(nn.Module):
    """A trained model's weights; embeddings gathered and concatenated, histories padded at the right."""

    def __init__(self, trained: FoundationModel) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding.from_pretrained(t.detach()) for t in trained.events.tables)
        self.spans, self.projection = trained.events.spans, trained.events.projection
        blocks = [PlainBlock(b) for b in trained.transformer.blocks if isinstance(b, Block)]
        self.blocks, self.width = nn.ModuleList(blocks), blocks[0].width
        self.norm, self.member, self.state_layer = (
            trained.transformer.norm, trained.heads.member, trained.config.state_layer
        )  # fmt: skip

    def forward(self, tokens: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """tokens int64 [B, L, C], the last token int64 [B] of each → member vectors [B, D], row states [B, M]."""
        x = self.projection(torch.cat([self._field(tokens, i) for i in range(len(self.tables))], dim=-1))
        of, cos_sin = torch.arange(len(x)), _rotation(x.shape[1], self.width)
        state = x[of, last]
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, *cos_sin)
            if number == self.state_layer:
                state = x[of, last]
        return self.member(self.norm(x[of, last])), state

    def _field(self, tokens: Tensor, field: int) -> Tensor:
        """[B, L, E]: the field's row, or of a field of several columns the mean of its rows that are not absent."""
        start, stop = self.spans[field]
        rows = self.tables[field](tokens[..., start:stop])
        if stop - start == 1:
            return rows[..., 0, :]
        there = (tokens[..., start:stop] != 0)[..., None]
        return (rows * there).sum(-2) / there.sum(-2).clamp(min=1)


class PlainBlock(nn.Module):
    """A block over [B, L, M]: torch's scaled dot product attention, causal."""

    def __init__(self, trained: Block) -> None:
        super().__init__()
        self.attention_norm, self.qkv, self.out = trained.attention_norm, trained.qkv, trained.out
        self.feed_norm, self.up, self.down = trained.feed_norm, trained.up, trained.down
        self.heads, self.width = trained.heads, trained.out.in_features // trained.heads

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, self.width)).permute(2, 0, 3, 1, 4)
        attended = nnf.scaled_dot_product_attention(_rotated(q, cos, sin), _rotated(k, cos, sin), v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(nnf.gelu(self.up(self.feed_norm(x))))


def _rotation(length: int, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [L, width / 2] of rotary positions."""
    frequency = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float32) / (width // 2))
    angle = torch.arange(length, dtype=torch.float32)[:, None] * frequency
    return angle.cos(), angle.sin()


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class PlainEngine(HomepageEngine):
    """The engine with a PlainModel inside. A call with several requests pads them to the longest."""

    def __init__(self, bundle: Path) -> None:
        super().__init__(Store.open(bundle))
        self.plain = PlainModel(self.store.model).eval()
        self.store.model.events.folded = None  # memory that the peer has no use for

    @torch.inference_mode()
    def encode(self, prepared: Sequence[Prepared]) -> tuple[Tensor, Tensor]:
        tokens = [torch.from_numpy(p.tokens).long() for p in prepared]
        last = torch.tensor([len(t) - 1 for t in tokens])
        return self.plain(pad_sequence(tokens, batch_first=True), last)

    def _keep_ranking(self, p: Prepared, ranked: Ranked) -> None:
        """Nothing is kept."""

    def page(self, request: PageRequest) -> Page:
        """One page. Raises ValueError for a bad request."""
        (page,) = self.pages([request])
        if isinstance(page, ValueError):
            raise page
        return page
