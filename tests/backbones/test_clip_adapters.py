"""What every CLIP adapter promises, on tiny random models of each image tower."""

from __future__ import annotations

from copy import deepcopy
from functools import lru_cache
from importlib.resources import files

import open_clip
import pytest
import timm
import torch
from timm.models.eva import Eva
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from lexiseg.backbones.clip import (
    ClipBackbone,
    ClipConvNeXt,
    ClipEfficientNet,
    ClipEva,
    ClipMeanPooled,
    ClipResNet,
    ClipViT,
    assemble_clip,
    pack_projections,
    region_weights,
    split_projections,
)
from lexiseg.backbones.clip_vit import projected, resized_positions
from lexiseg.errors import UsageError

TEXT = {"context_length": 16, "vocab_size": 2048, "width": 32, "heads": 2, "layers": 2}
VISION = {
    "convnext": {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "mlp", "image_size": 64},
    "efficientnet": {"timm_model_name": "test_efficientnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64},
    "resnet": {"layers": [1, 1, 2, 1], "width": 8, "patch_size": None, "image_size": 64},
    "vit": {"layers": 3, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 64},
    "eva": {"timm_model_name": "lexiseg_test_eva", "timm_pool": "token", "timm_proj": None, "image_size": 64},
}
ADAPTERS = {
    "convnext": ClipConvNeXt, "efficientnet": ClipEfficientNet, "resnet": ClipResNet, "vit": ClipViT, "eva": ClipEva
}  # fmt: skip
BPE = str(files("lexiseg") / "assets/clip-tiny-bpe.txt.gz")


@timm.models.register_model
def lexiseg_test_eva(**options: object) -> Eva:
    """EVA-01 as timm's ``eva_giant_patch14_224``, three blocks deep."""
    sizes = {"img_size": 64, "patch_size": 16, "embed_dim": 64, "depth": 3, "num_heads": 2, "mlp_ratio": 6144 / 1408}
    return Eva(**{**sizes, "num_classes": options["num_classes"], "global_pool": options["global_pool"]})


@lru_cache
def tiny(tower: str) -> ClipBackbone:
    """A random CLIP whose parameters are all in use: constructors leave layer scales and last norms near zero."""
    torch.manual_seed(0)
    tokenizer = open_clip.SimpleTokenizer(BPE, context_length=TEXT["context_length"])
    config = {"embed_dim": 24, "vision_cfg": VISION[tower], "text_cfg": TEXT, "custom_text": tower == "eva"}
    clip = assemble_clip(config, tokenizer, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25)).eval().requires_grad_(False)
    for name, parameter in clip.named_parameters():
        if "logit_scale" not in name:
            mild = tower == "efficientnet" and parameter.dim() == 4  # or its numbers grow with every stage
            parameter.add_((0.01 if mild else 0.1) * torch.randn_like(parameter))
    return clip


@pytest.fixture(params=list(VISION))
def clip(request: pytest.FixtureRequest) -> ClipBackbone:
    return tiny(request.param)


def random_images(count: int = 2, size: tuple[int, int] = (64, 96)) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1))


def random_masks(count: int = 2, regions: int = 5, size: tuple[int, int] = (32, 48)) -> Tensor:
    """Smooth soft masks, some of them small."""
    noise = torch.randn(count, regions, 4, 6, generator=torch.Generator().manual_seed(2))
    return (8 * functional.interpolate(noise, size, mode="bilinear") - 4).sigmoid()


@pytest.mark.parametrize("tower", VISION)
def test_the_tower_chooses_the_adapter(tower: str) -> None:
    assert type(tiny(tower)) is ADAPTERS[tower]


def test_declarations_are_true(clip: ClipBackbone) -> None:
    images = random_images()
    features = clip.features(images)
    assert len(features.levels) == len(clip.strides) == len(clip.channels)
    for level, stride, channels in zip(features.levels, clip.strides, clip.channels, strict=True):
        assert level.shape == (2, channels, 64 // stride, 96 // stride)
    assert clip.dense(images).shape == (2, clip.width, *features.grid)
    assert clip.encode_image(images).shape == (2, clip.width)
    assert clip.embed_regions(features, random_masks()).shape == (2, 5, clip.width)
    tokens = clip.tokenize(["cat", "dog", "a red car"])
    assert tokens.shape == (3, clip.context_length)
    assert clip.encode_text(tokens).shape == (3, clip.width)
    assert clip.image_size == 64
    assert not any(parameter.requires_grad for parameter in clip.parameters())


def test_batch_of_two_is_two_of_one(clip: ClipBackbone) -> None:
    images, masks = random_images(), random_masks()
    together = clip.features(images)
    for index in range(2):
        one = slice(index, index + 1)
        alone = clip.features(images[one])
        for ours, both in zip((*alone.levels, alone.last), (*together.levels, together.last), strict=True):
            assert_close(ours, both[one], atol=1e-5, rtol=1e-5)
        assert_close(clip.project(alone), clip.project(together)[one], atol=1e-5, rtol=1e-5)
        assert_close(clip.embed_regions(alone, masks[one]), clip.embed_regions(together, masks)[one], atol=1e-5, rtol=1e-5)
        assert_close(clip.encode_image(images[one]), clip.encode_image(images)[one], atol=1e-5, rtol=1e-5)


def test_whole_images_are_embedded_as_open_clip_does(clip: ClipBackbone) -> None:
    images = random_images(size=(64, 64))
    mean, std = torch.tensor(clip.mean), torch.tensor(clip.std)
    normalised = (images - mean[:, None, None]) / std[:, None, None]
    assert_close(clip.encode_image(images), clip.clip_model.encode_image(normalised), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (128, 32)])
@pytest.mark.parametrize("tower", ["convnext", "efficientnet", "vit", "eva"])
def test_region_of_everything_is_the_image(tower: str, size: tuple[int, int]) -> None:
    clip, images = tiny(tower), random_images(size=size)
    regions = clip.embed_regions(clip.features(images), torch.ones(2, 1, 16, 16))
    assert_close(regions[:, 0], clip.encode_image(images), atol=1e-5, rtol=1e-5)


def test_regions_are_embedded_independently(clip: ClipBackbone) -> None:
    features, masks, order = clip.features(random_images()), random_masks(), [3, 0, 4, 1, 2]
    embedded = clip.embed_regions(features, masks)
    assert_close(clip.embed_regions(features, masks[:, order]), embedded[:, order], atol=1e-6, rtol=1e-5)
    assert_close(clip.embed_regions(features, masks[:, 2:3]), embedded[:, 2:3], atol=1e-6, rtol=1e-5)
    distances = torch.cdist(embedded[0], embedded[0]) + torch.eye(5)
    assert distances.min() > 1e-3, "different regions must not look the same"


def test_regions_without_pixels_are_zero_and_harm_nobody(clip: ClipBackbone) -> None:
    features, masks = clip.features(random_images()), random_masks()
    emptied = masks.clone()
    emptied[0, 1], emptied[1, 3] = 0, 0
    embedded = clip.embed_regions(features, emptied)
    assert (embedded[0, 1] == 0).all()
    assert (embedded[1, 3] == 0).all()
    others = [0, 2, 4]
    assert_close(embedded[:, others], clip.embed_regions(features, masks)[:, others], atol=1e-6, rtol=1e-5)
    assert (clip.embed_regions(features, torch.zeros(2, 1, 8, 8)) == 0).all()
    assert clip.embed_regions(features, masks[:, :0]).shape == (2, 0, clip.width)


def test_faint_and_tiny_regions_count_as_regions(clip: ClipBackbone) -> None:
    features, masks = clip.features(random_images()), torch.zeros(2, 1, 512, 768)
    masks[..., 300, 500] = 1.0
    embedded = clip.embed_regions(features, masks)
    assert embedded.norm(dim=-1).min() > 1e-3
    assert_close(clip.embed_regions(features, 1e-6 * masks), embedded, atol=1e-6, rtol=1e-5)


def test_resolution_of_masks_does_not_matter(clip: ClipBackbone) -> None:
    features, masks = clip.features(random_images()), random_masks()
    finer = masks.repeat_interleave(4, -1).repeat_interleave(4, -2)
    assert_close(clip.embed_regions(features, finer), clip.embed_regions(features, masks), atol=1e-5, rtol=1e-5)


def test_region_weights_are_shares_of_cells() -> None:
    masks = torch.zeros(1, 2, 8, 12)
    masks[0, 0, :4, :4], masks[0, 0, 4:6, :4] = 1.0, 1.0
    weights = region_weights(masks, (2, 3))
    assert weights[0, 0].tolist() == [[1.0, 0.0, 0.0], [0.5, 0.0, 0.0]]
    assert weights[0, 1].count_nonzero() == 0


def test_texts_do_not_depend_on_padding_or_neighbours(clip: ClipBackbone) -> None:
    texts = ["cat", "a photo of a very large red house", "dog"]
    tokens = clip.tokenize(texts)
    embedded = clip.encode_text(tokens)
    whole = functional.normalize(clip.clip_model.encode_text(tokens), dim=-1)
    assert_close(embedded, whole, atol=1e-6, rtol=1e-5)
    assert_close(clip.encode_text(tokens[:1]), embedded[:1], atol=1e-6, rtol=1e-5)
    assert_close(embedded.norm(dim=-1), torch.ones(3))
    assert torch.cdist(embedded, embedded)[0, 2] > 1e-3


def test_long_texts_keep_their_end_token(clip: ClipBackbone) -> None:
    short, long = clip.tokenize(["cat", "cat " * 300])
    end = short[short.argmax()]
    assert long[-1] == end
    assert (long == end).sum() == 1
    assert clip.encode_text(long[None]).isfinite().all()


def test_logit_scale_is_bounded_as_in_clip() -> None:
    clip = deepcopy(tiny("resnet"))
    clip.clip_model.logit_scale.data.fill_(2.0)
    assert_close(clip.logit_scale, torch.tensor(2.0).exp())
    clip.clip_model.logit_scale.data.fill_(9.0)
    assert clip.logit_scale == 100


def test_identity_follows_the_weights(clip: ClipBackbone) -> None:
    other = deepcopy(clip)
    assert other.identity == clip.identity
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    assert other.identity != clip.identity
    assert len({tiny(tower).identity for tower in VISION}) == len(VISION)


def test_towers_can_learn(clip: ClipBackbone) -> None:
    learner = deepcopy(clip).requires_grad_(True)
    features = learner.features(random_images())
    learner.embed_regions(features, random_masks()).square().sum().backward()
    learner.dense(random_images()).square().sum().backward()
    learner.encode_text(learner.tokenize(["cat"])).sum().backward()
    untouched = {name for name, parameter in learner.named_parameters() if parameter.grad is None}
    assert untouched <= {"clip_model.logit_scale"}
    assert all(parameter.grad.isfinite().all() for parameter in learner.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("kind", ["convnext", "efficientnet"])
def test_mean_pooled_regions_are_the_head_of_their_mean(kind: str) -> None:
    clip, images = tiny(kind), random_images()
    features = clip.features(images)
    labels = torch.randint(3, (2, 64, 96), generator=torch.Generator().manual_seed(3))
    masks = functional.one_hot(labels, 3).permute(0, 3, 1, 2).float()
    embedded = clip.embed_regions(features, masks)
    tower = clip.clip_model.visual
    for image in range(2):
        for region in range(3):  # the mean over the region's pixels of the cell each lies in, as in training
            inside = (labels[image] == region).nonzero() // 32
            vector = torch.stack([features.last[image, :, y, x] for y, x in inside.tolist()]).mean(0)
            pooled = tower.trunk.head(vector[None, :, None, None]) if kind == "convnext" else vector[None]
            expected = tower.head(pooled)[0]
            assert_close(embedded[image, region], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["convnext", "efficientnet"])
def test_mean_pooled_cells_are_regions_of_one_cell(kind: str) -> None:
    clip, images = tiny(kind), random_images()
    cells = torch.eye(6).reshape(1, 6, 2, 3).expand(2, -1, -1, -1)
    regions = clip.embed_regions(clip.features(images), cells)
    assert_close(clip.dense(images).flatten(2).mT, regions, atol=1e-5, rtol=1e-5)


def test_efficientnet_levels_are_the_last_stages_of_their_strides() -> None:
    """Against timm's own way to read features."""
    clip, images = tiny("efficientnet"), random_images()
    trunk, mean, std = clip.clip_model.visual.trunk, torch.tensor(clip.mean), torch.tensor(clip.std)
    normalised = (images - mean[:, None, None]) / std[:, None, None]
    last, levels = trunk.forward_intermediates(normalised, norm=False)
    for ours, theirs in zip(clip.features(images).levels, levels[-4:], strict=True):
        assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert_close(clip.features(images).last, last, atol=1e-5, rtol=1e-5)


def test_efficientnets_official_regions_are_means_of_whole_cells() -> None:
    clip = tiny("efficientnet")
    assert isinstance(clip, ClipMeanPooled)
    features = clip.features(random_images())
    logits = torch.randn(2, 4, 2, 3, generator=torch.Generator().manual_seed(4))
    logits[:, :, 0, 0] = 1.0
    assert_close(
        clip.embed_regions_official(features, logits),
        clip.embed_regions(features, (logits > 0).float()),
        atol=1e-5,
        rtol=1e-4,
    )


def test_resnet_official_regions_are_masked_attention_pooling() -> None:
    clip = tiny("resnet")
    features = clip.features(random_images(size=(64, 64)))  # the native grid: no positions are resized
    logits = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(4))
    logits[:, 0] = logits[:, 0].abs()
    logits[:, 1:, 0, 0] = 1.0
    pool, tokens = clip.clip_model.visual.attnpool, features.last.flatten(2).permute(2, 0, 1)
    query = tokens.mean(0, keepdim=True) + pool.positional_embedding[:1, None]
    keys = tokens + pool.positional_embedding[1:, None]
    blocked = (logits <= 0).flatten(2).repeat_interleave(pool.num_heads, dim=0)
    expected, _ = functional.multi_head_attention_forward(
        query.expand(4, -1, -1), keys, keys, 256, pool.num_heads, None,
        torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]), None, None, False, 0.0,
        pool.c_proj.weight, pool.c_proj.bias, training=False, need_weights=False, attn_mask=blocked,
        use_separate_proj_weight=True, q_proj_weight=pool.q_proj.weight, k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
    )  # fmt: skip
    assert isinstance(clip, ClipResNet)
    official = clip.embed_regions_official(features, logits)
    assert_close(official, expected.transpose(0, 1), atol=1e-5, rtol=1e-5)
    assert_close(clip.embed_regions(features, (logits > 0).float()), official, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tower", ["convnext", "efficientnet", "resnet"])
def test_official_regions_without_cells_are_finite(tower: str) -> None:
    clip = tiny(tower)
    assert isinstance(clip, ClipMeanPooled | ClipResNet)
    features, nothing = clip.features(random_images()), torch.full((2, 1, 16, 24), -1.0)
    assert clip.embed_regions_official(features, nothing).isfinite().all()


@pytest.mark.parametrize("tower", ["vit", "eva"])
def test_vit_mask_tokens_are_extra_tokens_nobody_sees(tower: str) -> None:
    clip, images, masks = tiny(tower), random_images(), random_masks()
    features = clip.features(images)
    visual, (high, wide), regions = clip.clip_model.visual, features.grid, masks.shape[1]
    share = functional.adaptive_avg_pool2d(masks, (high, wide)).flatten(2)
    seen = share >= 0.1 * share.amax(-1, keepdim=True)
    assert 0 < seen.float().mean() < 1
    first = features.last[:, 0]
    tokens = torch.cat([first[:, :1].expand(-1, regions, -1), first], dim=1)
    blocked = torch.zeros(2, tokens.shape[1], tokens.shape[1], dtype=torch.bool)
    blocked[:, :, :regions] = True
    blocked[:, :regions, regions + 1 :] = ~seen
    bias = torch.zeros(blocked.shape).masked_fill(blocked, -torch.inf).repeat_interleave(2, dim=0)
    if tower == "vit":
        for block in visual.transformer.resblocks:
            tokens = block(tokens, attn_mask=bias)
        embedded = visual.ln_post(tokens) @ visual.proj
    else:
        for block in visual.trunk.blocks:
            tokens = block(tokens, attn_mask=bias.unflatten(0, (2, 2)))
        embedded = visual.trunk.head(visual.trunk.norm(tokens))
    assert_close(clip.embed_regions(features, masks), embedded[:, :regions], atol=1e-5, rtol=1e-5)
    assert_close(embedded[:, regions], clip.encode_image(images), atol=1e-5, rtol=1e-5)


def test_words_are_the_tokens_between_start_and_end(clip: ClipBackbone) -> None:
    """The outputs of the text tower before pooling; of masked words only their number is left."""
    tokens = clip.tokenize(["cat", "a red house"])
    words = clip.encode_words(tokens)
    assert [len(row) for row in words] == [int(row.argmax()) - 1 for row in tokens]
    alone = clip.encode_words(tokens[1:])
    assert_close(alone[0], words[1], atol=1e-6, rtol=1e-5)
    covered = torch.randn(clip.token_width, generator=torch.Generator().manual_seed(6))
    same = clip.tokenize(["cat", "dog"])
    assert same[0].argmax() == same[1].argmax()
    first, second = clip.encode_words(same, covered=covered)
    assert_close(first, second)
    assert (first - clip.encode_words(same)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("tower", ["vit", "eva"])
def test_rows_of_a_projection_are_what_changes_it(tower: str) -> None:
    """Changing the rows of f_q changes queries and nothing else, and so on."""
    clip = deepcopy(tiny(tower))
    assert isinstance(clip, ClipViT)
    tokens = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(7))
    for kind, index in (("f_q", 0), ("f_k", 1), ("f_v", 2)):
        before = projected(clip.blocks[1].attn, tokens, tokens)
        for _, parameter, frozen in clip.projection_rows((kind,)):
            kept = parameter.detach().clone()
            parameter.data.add_(0.1)
            for rows in frozen:
                parameter.data[rows] = kept[rows]
        after = projected(clip.blocks[1].attn, tokens, tokens)
        changed = [bool((new != old).any()) for new, old in zip(after, before, strict=True)]
        assert changed == [number == index for number in range(3)], kind


def test_vit_dense_is_not_the_plain_tokens() -> None:
    clip, images = tiny("vit"), random_images()
    features, tower = clip.features(images), clip.clip_model.visual
    plain = tower.ln_post(tower.transformer.resblocks[-1](features.last[:, -1])) @ tower.proj
    similarity = functional.cosine_similarity(clip.dense(images).flatten(2).mT, plain[:, 1:], dim=-1)
    assert similarity.mean() < 0.98


def test_vit_levels_are_the_ends_of_thirds_or_chosen() -> None:
    clip = deepcopy(tiny("vit"))
    assert isinstance(clip, ClipViT)
    assert (clip.depth, clip.level_blocks) == (3, (0, 1, 2))
    with torch.device("meta"):
        config = {"embed_dim": 24, "vision_cfg": VISION["vit"] | {"layers": 12}, "text_cfg": TEXT}
        deep = assemble_clip(config, clip.tokenize, mean=clip.mean, std=clip.std)
    assert isinstance(deep, ClipViT)
    assert deep.level_blocks == (3, 7, 11)
    features = clip.features(random_images())
    assert_close(features.levels[0].flatten(2).mT, features.last[:, 1, 1:])


def test_vit_positions_keep_the_class_row_and_the_native_grid() -> None:
    table = torch.randn(17, 8, generator=torch.Generator().manual_seed(5))
    assert resized_positions(table, (4, 4), (4, 4)) is table
    larger = resized_positions(table, (4, 4), (6, 5))
    assert larger.shape == (31, 8)
    assert torch.equal(larger[0], table[0])
    constant = torch.ones(17, 8)
    assert_close(resized_positions(constant, (4, 4), (3, 9)), torch.ones(28, 8))


def test_vit_projections_split_and_pack() -> None:
    state = tiny("vit").clip_model.state_dict()
    split = split_projections(state)
    blocks = VISION["vit"]["layers"] + TEXT["layers"]
    assert len(split) == len(state) + 2 * blocks
    assert not any(name.endswith("in_proj_weight") for name in split)
    packed = pack_projections(split)
    assert packed.keys() == state.keys()
    assert all(torch.equal(packed[name], state[name]) for name in state)
    separate = nn.MultiheadAttention(64, 2, kdim=32, vdim=32)  # names as PyTorch itself has them
    assert {"q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias"} <= separate.state_dict().keys()


@pytest.mark.parametrize(
    "vision",
    [
        VISION["vit"] | {"pool_type": "avg"},
        VISION["vit"] | {"final_ln_after_pool": True},
        VISION["vit"] | {"attentional_pool": True},
        VISION["vit"] | {"scale_heads": True},
        {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160},
    ],
)
def test_towers_without_adapter_are_refused(vision: dict[str, object]) -> None:
    config, tokenizer = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT}, tiny("vit").tokenize
    with (
        torch.device("meta"),
        pytest.raises(UsageError, match=r"no adapter for .*lexiseg supports ConvNeXt, EfficientNet, ResNet"),
    ):
        assemble_clip(config, tokenizer, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
