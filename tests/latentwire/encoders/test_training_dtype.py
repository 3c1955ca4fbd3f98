"""Training computes the encoder's matrix products in a lower precision; evaluation does not."""

from __future__ import annotations

import pytest
import torch

from latentwire.encoders.base import make_passages
from latentwire.encoders.pipeline import Latents, LatentSpec
from latentwire.lm.vocabulary import Vocabulary

pytestmark = pytest.mark.usefixtures("one_thread")


def test_products_are_lower_in_training_only(tiny):
    torch.manual_seed(0)
    vocabulary = Vocabulary(tiny.token_embeddings())
    latents = Latents(LatentSpec("bottleneck", {"d_z": 8}, 8, "baseline", {}, {}, "tiny_random"), vocabulary)
    passages = make_passages(["x"], [vocabulary.embeddings[:12]])
    exact = latents(passages)[0]
    latents.training_dtype = torch.bfloat16
    trained = latents.train()(passages)[0]
    assert torch.equal(latents.eval()(passages)[0], exact)
    assert trained.dtype == torch.float32
    assert not torch.equal(trained, exact)
    assert torch.allclose(trained, exact, atol=0.1)  # bfloat16 has 8 bits, the latents an RMS of 1
    trained.square().sum().backward()
    assert {parameter.grad.dtype for parameter in latents.parameters() if parameter.grad is not None} == {torch.float32}
