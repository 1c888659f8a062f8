"""The transformer's short cut for the last token of each history."""

from __future__ import annotations

import pytest
import torch
from frontrow.foundation.transformer import Transformer


@pytest.mark.parametrize(("layers", "state_layer"), [(1, 0), (1, 1), (3, 0), (3, 1), (3, 2), (3, 3)])
@pytest.mark.parametrize("lengths", [[1], [7], [4, 1, 9, 2]], ids=str)
def test_the_last_tokens_alone_are_those_of_the_whole(layers: int, state_layer: int, lengths: list[int]) -> None:
    transformer = Transformer(16, layers, 2, dropout=0.5).eval()
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    x = torch.randn(int(offsets[-1]), 16)
    wanted = [t[offsets[1:] - 1] for t in transformer(x, offsets, state_layer)]
    for found, whole in zip(transformer.last(x, offsets, state_layer), wanted, strict=True):
        torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-6)


def test_only_the_last_block_skips_tokens() -> None:
    transformer = Transformer(16, 2, 2, dropout=0.0)
    fed = []
    for block in transformer.blocks:
        block.up.register_forward_hook(lambda _module, inputs, _output: fed.append(len(inputs[0])))
    transformer.last(torch.randn(11, 16), torch.tensor([0, 4, 11]), 1)
    assert fed == [11, 2]
