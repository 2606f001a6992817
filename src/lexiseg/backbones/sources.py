"""Sources of weights: one table of all files that others have published, and what of it is on this machine.

    SOURCES["catseg-vit-b16"].fetch()       downloads the file unless it is here, and returns its path
    SOURCES["catseg-vit-b16"].present()     whether it is here; makes no request

Files of the Hugging Face hub lie in its client's cache, all others in ``$LEXISEG_CACHE/weights``, where they may also be put by
hand. The digest of each is recorded when it is first seen, and later compared (`lexiseg.backbones.digests`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lexiseg.backbones.configs import ASSETS
from lexiseg.backbones.digests import add_digest, digest_of, is_whole, recorded_digest
from lexiseg.backbones.downloads import download, download_from_drive
from lexiseg.backbones.hub import cached, fetched
from lexiseg.errors import WeightsError
from lexiseg.ops.files import is_file
from lexiseg.text.embed import cache_folder

APACHE, MIT, NONE_STATED = "Apache-2.0", "MIT", "none stated"
PERMISSIVE = frozenset({APACHE, MIT})  # licences without conditions on use
DRIVE_PAGE = "https://drive.google.com/file/d/"
WEIGHTS, CONFIG = "model.safetensors", "config.json"


@dataclass(frozen=True)
class Source:
    """Source of a file with weights. Without repository, address, Drive id and recipe it is in the package.

    Attributes:
        file: path in the repository, in the package's ``assets``, or name in ``$LEXISEG_CACHE/weights``.
        licence: licence of the weights.
        repository: repository on the Hugging Face hub; that of a Space begins with ``spaces/``.
        further: other files of the repository that loading needs.
        address: URL of the file.
        drive: id of the file on Google Drive.
        recipe: command that trains the weights, of which none are published.
        gated: whether its licence must be accepted on its page.
        size: bytes, to two or three digits: four per parameter.
        digest: SHA-256 of the file, or SHA-1 of its Git blob, if known.
        revision: branch, tag or commit of the repository; None: main.
        max_bytes: largest file that is downloaded from the hub; None: no limit.
    """

    file: str
    licence: str
    repository: str | None = None
    further: tuple[str, ...] = ()
    address: str = ""
    drive: str = ""
    recipe: str = ""
    gated: bool = False
    size: int | None = None
    digest: str | None = None
    revision: str | None = None
    max_bytes: int | None = None

    @property
    def embedded(self) -> bool:
        """Whether it is in the package."""
        return not (self.repository or self.address or self.drive or self.recipe)

    @property
    def needs_consent(self) -> bool:
        """Whether the user should confirm the download: it is gated, or its licence may restrict the use."""
        return self.gated or self.licence not in PERMISSIVE

    @property
    def where(self) -> str:
        """Its location in words."""
        if self.repository:
            revision = f"@{self.revision}" if self.revision else ""
            return f"Hugging Face hub, {self.repository}{revision}, {self.file}"
        return self.address or (f"{DRIVE_PAGE}{self.drive}" if self.drive else self.recipe or "in the package")

    def path(self) -> Path | None:
        """The file on this machine, or None; it makes no request and does not verify the file."""
        if self.embedded:
            return ASSETS / self.file if (ASSETS / self.file).is_file() else None
        if self.repository:
            if any(cached(self.repository, name, self.revision) is None for name in self.further):
                return None
            return cached(self.repository, self.file, self.revision)
        path = None if self.recipe else self._own()
        return path if path is not None and is_file(path) else None

    def present(self) -> bool:
        """Whether the file is on this machine, see `path`."""
        return self.path() is not None

    def fetch(self) -> Path:
        """Return the path of the file, which is downloaded unless it is here, and verified.

        Raises:
            WeightsError: it cannot be downloaded, is damaged, or is not the file of its first download here.
            OutputError: it cannot be written.
        """
        if self.embedded:
            return ASSETS / self.file
        if self.recipe:
            raise WeightsError(f"nobody has published these weights; '{self.recipe}' trains them")
        if self.repository:
            advice = f"give a copy of {self.file} with --weights"
            for name in self.further:
                fetched(self.repository, name, advice=advice, revision=self.revision)
            return fetched(self.repository, self.file, advice=advice, revision=self.revision, max_bytes=self.max_bytes)
        path = self._own()
        if path is None:
            raise WeightsError("there is no folder for weights: set LEXISEG_CACHE")
        if is_file(path):
            return self._checked(path)
        if self.drive:
            return download_from_drive(self.drive, path, page=self.where)
        return download(self.address, path, digest=self.digest)

    def origin(self) -> dict[str, str]:
        """Entry in a card for a backbone with these weights."""
        if self.embedded:
            return {"file": self.file, "sha256": digest_of(ASSETS / self.file)}
        if self.repository:
            return {"repository": self.repository, "file": self.file}
        return {"address": self.where, "file": self.file}

    def _own(self) -> Path | None:
        """Where the file lies, if it is neither on the hub nor in the package."""
        folder = cache_folder("weights")
        return None if folder is None else folder / self.file

    def _checked(self, path: Path) -> Path:
        """Verify a file in ``$LEXISEG_CACHE/weights``; one that was put there by hand is recorded."""
        expected = recorded_digest(self.where) or self.digest
        if expected is None:
            add_digest(self.where, digest_of(path), path.stat().st_size)
        elif not is_whole(path, expected):
            raise WeightsError(
                f"{path} is damaged, or not the file of its first download: its digest is not {expected[:12]}…; delete it and "
                "fetch it again"
            )
        return path


def _hub(repository: str, size: float, licence: str = APACHE, *further: str, file: str = WEIGHTS) -> Source:
    return Source(file, licence, repository, further, size=int(size * 1e6))


def _clip(repository: str, size: float) -> Source:
    return _hub(repository, size, MIT, file="open_clip_model.safetensors")


def _drive(name: str, file_id: str, size: float, licence: str) -> Source:
    return Source(name, licence, drive=file_id, size=int(size * 1e6))


# Licences as stated on the pages of the files; sizes in MB. OpenAI and LAION state MIT for their CLIPs.
SOURCES: Mapping[str, Source] = {
    "clip-ViT-B-16-openai": _clip("timm/vit_base_patch16_clip_224.openai", 599),
    "clip-ViT-L-14-336-openai": _clip("timm/vit_large_patch14_clip_336.openai", 1710),
    "clip-RN50x64-openai": _clip("timm/resnet50x64_clip.openai", 2490),
    "clip-EVA01-g-14-plus-merged2b_s11b_b114k": _clip("timm/eva_giant_patch14_plus_clip_224.merged2b_s11b_b114k", 5470),
    "clip-convnext_large_d_320-laion2b_s29b_b131k_ft_soup": _clip(
        "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup", 1410
    ),
    "sam-b": _hub("facebook/sam-vit-base", 375, APACHE, CONFIG),
    "sam-l": _hub("facebook/sam-vit-large", 1250, APACHE, CONFIG),
    "sam-h": _hub("facebook/sam-vit-huge", 2560, APACHE, CONFIG),
    "sam2-t": _hub("facebook/sam2.1-hiera-tiny", 156, APACHE, CONFIG),
    "mobile_sam": Source(
        "mobile_sam.pt",
        APACHE,
        address="https://raw.githubusercontent.com/ChaoningZhang/MobileSAM/34bbbfdface3c18e5221aa7de6032d7220c6c6a1/"
        "weights/mobile_sam.pt",
        size=40_700_000,
        digest="7ef2d090979fd9853adf17b7a99c8b94a1c5a6a7",  # Git's, of the blob in that commit
    ),
    "grounding-dino-swin-t": _hub("IDEA-Research/grounding-dino-tiny", 689, APACHE, CONFIG, "vocab.txt"),
    "grounding-dino-swin-b": _hub("IDEA-Research/grounding-dino-base", 933, APACHE, CONFIG, "vocab.txt"),
    "mm-grounding-dino-swin-t": _hub(
        "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det", 692, APACHE, CONFIG, "vocab.txt"
    ),
    "mask2former-r50": _hub("facebook/mask2former-resnet-50-coco-panoptic", 176, "other (see its page)", CONFIG),
    "mask2former-swin-t": _hub("facebook/mask2former-swin-tiny-coco-panoptic", 190, "other (see its page)", CONFIG),
    "mask2former-swin-b": _hub("facebook/mask2former-swin-base-coco-panoptic", 432, "other (see its page)", CONFIG),
    "fcclip-convnext-l": _drive("fcclip-convnext-l.pth", "1-91PIns86vyNaL3CzMmDD39zKGnPMtvj", 1490, APACHE),
    "fcclip-rn50x64": _drive("fcclip-rn50x64.pth", "1rvfFVp5p3PZQsHp2NGVEBeYYcqgVVaZX", 2580, APACHE),
    "cmpf-convnext-l": _drive("cmpf-convnext-l.pth", "1ThjVgY7nawm1AAP1LhrmGVlI3zr1EYMG", 1890, NONE_STATED),
    "cmpf-rn50x64": _drive("cmpf-rn50x64.pth", "1wiPKPczTXrH1cPrDbf-l9NGdOkMUUikw", 2980, NONE_STATED),
    "catseg-vit-b16": _hub("spaces/hamacojr/CAT-Seg-weights", 617, MIT, file="model_base.pth"),
    "catseg-vit-l14": _hub("spaces/hamacojr/CAT-Seg-weights", 1730, MIT, file="model_large.pth"),
    "maskclip-vit-l14": _drive("maskclip-vit-l14.pth", "1fzf4y-l-BwhBkxambk_yS4yrCwHOKij7", 1900, "CC BY-NC 4.0"),
}
