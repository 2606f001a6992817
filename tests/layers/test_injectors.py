"""CMPF's injectors: their equations written out, where they act, and what behaviour changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.layers.mask_decoder import Memory, mask_pool
from lexiseg.layers.position import sine_positions
from lexiseg.methods.cmpf.injectors import FeatureInjector, QueryInjector, SamInjection
from lexiseg.methods.cmpf.sam_features import SamFeatures
from tests.layers.builders import LAYERS, QUERIES, WIDTH, decoder, features, same, text

SIZE = (2, 3)


def memory() -> Memory:
    positions = sine_positions(SIZE, WIDTH, like=torch.zeros(1)).flatten(2).mT
    return Memory(torch.randn(1, 6, WIDTH), positions, torch.randn(WIDTH), SIZE)


def injection(query: QueryInjector | None, feature: FeatureInjector | None) -> SamInjection:
    generator = torch.Generator().manual_seed(7)
    embedding = torch.randn(1, WIDTH, 4, 4, generator=generator)
    return SamInjection(embedding, torch.randn(1, WIDTH, 2, 2, generator=generator), query=query, feature=feature)


def test_feature_injector_is_its_equation() -> None:
    injector, given, sam = FeatureInjector((1,), width=WIDTH, heads=1), memory(), torch.randn(1, WIDTH, *SIZE)
    part = injector.attentions["1"]
    (f_q, f_k, f_v), (b_q, b_k, b_v) = part.attention.projection.weight.chunk(3), part.attention.projection.bias.chunk(3)
    tokens = sam.flatten(2).mT + given.level
    positions = sine_positions(SIZE, WIDTH, like=sam).flatten(2).mT
    q, k = (given.tokens + given.positions) @ f_q.mT + b_q, (tokens + positions) @ f_k.mT + b_k
    attended = (q @ k.mT / WIDTH**0.5).softmax(-1) @ (tokens @ f_v.mT + b_v)
    expected = part.norm(given.tokens + part.attention.output(attended))
    torch.testing.assert_close(injector(1, given, sam).tokens, expected, atol=1e-5, rtol=1e-5)


def test_behaviours_of_the_feature_injector_differ_in_the_key_positions() -> None:
    paper = FeatureInjector((1,), width=WIDTH, heads=2)
    official = FeatureInjector((1,), width=WIDTH, heads=2, behaviour="official").eval()
    official.load_state_dict(paper.state_dict())
    given, sam = memory(), torch.randn(1, WIDTH, 4, 4)
    kept, dropped = paper(1, given, sam), official(1, given, sam)
    assert torch.equal(kept.tokens, dropped.tokens)
    assert kept.positions is given.positions
    assert dropped.positions is None
    assert not torch.allclose(official.train()(1, given, sam).tokens, kept.tokens)  # trained on SAM's own grid


def test_query_injector_is_its_equation() -> None:
    queries, masks, sam = torch.randn(1, 5, WIDTH), torch.randn(1, 5, 8, 8), torch.randn(1, WIDTH, 4, 4)
    shared, own = QueryInjector(channels=WIDTH), QueryInjector(channels=WIDTH, own_projection=WIDTH)
    assert list(shared.parameters()) == []
    pooled = mask_pool(sam, masks)
    torch.testing.assert_close(shared(queries, masks, sam, torch.sin), queries + pooled.sin())
    assert own.projection is not None
    torch.testing.assert_close(own(queries, masks, sam, torch.sin), queries + own.projection(pooled))


class Recorded:
    """An injection that changes nothing and remembers what it was shown."""

    def __init__(self) -> None:
        self.memories: dict[int, Memory] = {}
        self.after: list[int] = []

    def features(self, layer: int, memory: Memory) -> Memory:
        self.memories[layer] = memory
        return memory

    def queries(self, layer: int, queries: Tensor, masks: Callable[[], Tensor], project: Callable[[Tensor], Tensor]) -> Tensor:
        assert masks().shape[:2] == project(queries).shape[:2]
        self.after.append(layer)
        return queries


@torch.no_grad()
def test_every_layer_is_offered_once() -> None:
    module, given, vocabulary, recorded = decoder(), features(), text(), Recorded()
    assert same(module(given, vocabulary, injection=recorded), module(given, vocabulary))
    assert list(recorded.memories) == list(range(1, LAYERS + 1))
    assert recorded.after == list(range(1, LAYERS))  # what is added after the last reaches nothing
    assert recorded.memories[1].size == recorded.memories[4].size == given.levels[0].shape[-2:]
    assert torch.equal(recorded.memories[1].tokens, recorded.memories[4].tokens)


@torch.no_grad()
def test_without_injectors_it_is_fcclip_bit_for_bit() -> None:
    module, given, vocabulary = decoder(), features(), text()
    plain = module(given, vocabulary, auxiliary=True)
    for switched_off in (injection(None, None), injection(QueryInjector((9,)), None), injection(QueryInjector(()), None)):
        assert same(module(given, vocabulary, injection=switched_off, auxiliary=True), plain)


@torch.no_grad()
@pytest.mark.parametrize("layer", [1, 3, 8])
def test_injectors_act_at_their_layers_and_not_before(layer: int) -> None:
    module, given, vocabulary = decoder(), features(), text()
    plain = module(given, vocabulary, auxiliary=True)
    feature = FeatureInjector((layer,), width=WIDTH, heads=2)
    for added, first in ((injection(QueryInjector((layer,)), None), layer + 1), (injection(None, feature), layer)):
        changed = module(given, vocabulary, injection=added, auxiliary=True)
        pairs = list(zip((*plain.auxiliary, plain), (*changed.auxiliary, changed), strict=True))
        equal = [torch.equal(before.masks, after.masks) for before, after in pairs]
        assert equal[:first] == [True] * first  # entry n is the prediction after layer n
        assert not equal[first]


@torch.no_grad()
def test_permuting_queries_permutes_the_prediction() -> None:
    module, given, vocabulary, order = decoder(), features(), text(), torch.randperm(QUERIES)
    added = injection(QueryInjector(), FeatureInjector(width=WIDTH, heads=2))
    before = module(given, vocabulary, injection=added)
    for embedding in (module.query_features, module.query_positions):
        embedding.weight.copy_(embedding.weight[order].clone())
    after = module(given, vocabulary, injection=added)
    torch.testing.assert_close(after.masks, before.masks[:, order], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("behaviour", ["paper", "official"])
def test_every_parameter_gets_a_gradient(behaviour: str) -> None:
    width = 32
    branch = SamFeatures(8, width=width, layers=1, heads=2, feedforward=16, behaviour=behaviour)
    feature = FeatureInjector(width=WIDTH, heads=2, behaviour=behaviour)
    query = QueryInjector(channels=WIDTH, own_projection=WIDTH)
    context = branch(torch.randn(1, 8, 8, 8))
    assert context.shape == (1, width, 4, 4)
    added = SamInjection(torch.randn(1, WIDTH, 4, 4), context[:, :WIDTH], query=query, feature=feature)
    decoded = decoder().train()(features(), text(), injection=added)
    (functional.softplus(decoded.masks).mean() + decoded.classes.softmax(-1)[..., 0].mean()).backward()
    for module in (branch, feature, query):
        missing = [name for name, parameter in module.named_parameters() if parameter.grad is None]
        assert missing == []


@torch.no_grad()
def test_sam_features_of_the_smallest_map() -> None:
    for behaviour in ("paper", "official"):
        branch = SamFeatures(8, width=64, layers=1, heads=2, feedforward=16, behaviour=behaviour)
        assert branch(torch.randn(1, 8, 2, 2)).shape == (1, 64, 1, 1)
