"""Causal transformer over ragged histories: [T, M] → [T, M].

Everything but attention works on the T real tokens; only attention pads, at the right, where the causal mask already
hides the padding. Pre-norm blocks (RMSNorm), rotary positions, GELU.
Shape letters: B members, T tokens of all histories, L longest history, M d_model, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn


class Ragged:
    """Where each token stands: offsets int64 [B+1] → position [T] within its history and slot [T] in [B·L]; the last
    token [B] of each history; which places [B, L] hold a token."""

    def __init__(self, offsets: Tensor) -> None:
        lengths = offsets.diff()
        self.members = len(lengths)
        self.longest = int(lengths.max()) if self.members else 0
        member = torch.repeat_interleave(torch.arange(self.members, device=offsets.device), lengths)
        self.position = torch.arange(len(member), device=offsets.device) - offsets[member]
        self.slot = member * self.longest + self.position
        self.last = offsets[1:] - 1
        self.real = torch.arange(self.longest, device=offsets.device) < lengths[:, None]
        self._rotary: dict[int, tuple[Tensor, Tensor]] = {}

    def rotary(self, width: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines [T, 1, width/2] of rotary positions (Su et al. 2021), made once for all blocks."""
        if width not in self._rotary:
            half = width // 2
            frequency = 10000.0 ** (-torch.arange(half, device=self.position.device, dtype=torch.float32) / half)
            angle = self.position.float()[:, None, None] * frequency
            self._rotary[width] = angle.cos(), angle.sin()
        return self._rotary[width]

    def pad(self, x: Tensor) -> Tensor:
        """[T, …] → [B, L, …], zeros at the right."""
        padded = x.new_zeros(self.members * self.longest, *x.shape[1:])
        return padded.index_copy(0, self.slot, x).view(self.members, self.longest, *x.shape[1:])

    def unpad(self, x: Tensor) -> Tensor:
        """[B, L, …] → [T, …]."""
        return x.flatten(0, 1)[self.slot]


class FixedRagged(Ragged):
    """The same in shapes that no value decides, as a CUDA graph needs them: T = `tokens`, of which those behind the
    last history belong to none, and room for `longest` tokens of each. A history may be empty: what comes out for it is
    of no use, and finite."""

    def __init__(self, offsets: Tensor, tokens: int, longest: int) -> None:
        self.members, self.longest = len(offsets) - 1, longest
        place = torch.arange(tokens, device=offsets.device)
        member = torch.searchsorted(offsets[1:], place, right=True)
        self.position = place - offsets[member]
        room = self.members * longest  # and one place behind it, for tokens of nobody
        self.slot = torch.where(member < self.members, member * longest + self.position, room)
        self.last = (offsets[1:] - 1).clamp(min=0)
        self.real = torch.arange(longest, device=offsets.device) < offsets.diff().clamp(min=1)[:, None]
        self._rotary = {}

    def pad(self, x: Tensor) -> Tensor:
        padded = x.new_zeros(self.members * self.longest + 1, *x.shape[1:])
        return padded.index_copy(0, self.slot, x)[:-1].view(self.members, self.longest, *x.shape[1:])

    def unpad(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1)[self.slot.clamp(max=self.members * self.longest - 1)]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, H, d] turned by the angles of which cos and sin [T, 1, d/2] are given."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Block(nn.Module):
    """Attention and feed-forward, each on the normalised input and added to it."""

    def __init__(self, d_model: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attention_norm = nn.RMSNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.feed_norm = nn.RMSNorm(d_model)
        self.up = nn.Linear(d_model, 4 * d_model)
        self.down = nn.Linear(4 * d_model, d_model)

    def forward(self, x: Tensor, ragged: Ragged, last_only: bool = False) -> Tensor:
        """x [T, M] → [T, M], or with `last_only` what comes out for each history's last token: [B, M]."""
        width = x.shape[1]
        normed = self.attention_norm(x)
        asking = normed[ragged.last] if last_only else normed
        q = self._heads(nnf.linear(asking, self.qkv.weight[:width]), 1)
        k, v = self._heads(nnf.linear(normed, self.qkv.weight[width:]), 2).unbind(1)
        cos, sin = ragged.rotary(q.shape[-1])
        q = rotate(q[:, 0], cos[ragged.last], sin[ragged.last]) if last_only else rotate(q[:, 0], cos, sin)
        k, v = ragged.pad(torch.stack([rotate(k, cos, sin), v], dim=1)).permute(2, 0, 3, 1, 4)  # [B, H, L, d]
        # No dropout on the attention weights: torch's CPU flash kernel has none, and falls back to [B, H, L, L].
        if last_only:
            attended = nnf.scaled_dot_product_attention(q[:, :, None], k, v, attn_mask=ragged.real[:, None, None])
            attended, x = attended.flatten(1), x[ragged.last]
        else:
            attended = nnf.scaled_dot_product_attention(ragged.pad(q).transpose(1, 2), k, v, is_causal=True)
            attended = ragged.unpad(attended.transpose(1, 2)).flatten(1)
        x = x + nnf.dropout(self.out(attended), self.dropout, self.training)
        fed = self.down(nnf.gelu(self.up(self.feed_norm(x))))
        return x + nnf.dropout(fed, self.dropout, self.training)

    def _heads(self, x: Tensor, parts: int) -> Tensor:
        """[T, parts · M] → [T, parts, H, d]."""
        return x.view(len(x), parts, self.heads, -1)


class Transformer(nn.Module):
    """`layers` blocks and a final norm; the state after block k is what the row ranker reads (the subgraph)."""

    def __init__(self, d_model: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(d_model, heads, dropout) for _ in range(layers))
        self.norm = nn.RMSNorm(d_model)

    def forward(self, x: Tensor, offsets: Tensor, state_layer: int) -> tuple[Tensor, Tensor]:
        """x [T, M], offsets int64 [B+1] → (final hidden [T, M], hidden after block `state_layer` [T, M])."""
        ragged, state = Ragged(offsets), x
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, ragged)
            if number == state_layer:
                state = x
        return self.norm(x), state

    def last(self, x: Tensor, offsets: Tensor | Ragged, state_layer: int) -> tuple[Tensor, Tensor]:
        """`forward` for the last token of each history: [B, M] and [B, M]. The last block computes no other token, so
        that of its work only keys and values grow with the histories."""
        ragged = offsets if isinstance(offsets, Ragged) else Ragged(offsets)
        state = x[ragged.last]
        for number, block in enumerate(self.blocks, start=1):
            final = number == len(self.blocks)
            x = block(x, ragged, last_only=final)
            if number == state_layer:
                state = x if final else x[ragged.last]
        return self.norm(x), state
