"""The published checkpoints that the papers use: where they are, under which licence, and which presets go with them.

Nothing here is downloaded by itself: `zoo.load(NAME)` does that, see `readers.py`. A `revision`, `size` or `sha256` is given
only where it is known from the publisher's page or from several independent records of the same file; else it is None.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Published", "entry", "published"]


@dataclass(frozen=True)
class Published:
    """A published checkpoint. `format`: how it is read, a key of `readers.READERS`.

    `where`: a hub id, or the address of a file. `revision`: the pinned commit of the hub, None for its newest. `file`: the
    one file that is used, None for a folder. `size` in bytes. `sha256`: of `file`, or its first digits where only those are
    published. `pickle`: there are no safetensors; the pickle is read with `weights_only=True`. `presets`: (method, preset).
    """

    name: str
    format: str
    where: str
    licence: str
    use: str
    revision: str | None = None
    file: str | None = None
    size: int | None = None
    sha256: str | None = None
    pickle: bool = False
    presets: tuple[tuple[str, str], ...] = ()
    note: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def page(self) -> str:
        """Where a person reads about it."""
        return self.where if "://" in self.where else f"https://huggingface.co/{self.where}"

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        return asdict(self) | {"presets": [list(pair) for pair in self.presets], "page": self.page}


# The flags that guided-diffusion documents for its unconditional 256x256 network.
_ADM_256 = {
    "image_size": 256,
    "num_channels": 256,
    "num_res_blocks": 2,
    "attention_resolutions": "32,16,8",
    "num_head_channels": 64,
    "learn_sigma": True,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}
_TIMM = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_ANY = (("ACE", "paper/imagenet"), ("DVCE", "paper/imagenet"), ("LDCE", "paper/imagenet"))

_ENTRIES = (
    Published(
        "ddpm-celebahq-256",
        "hub",
        "google/ddpm-ema-celebahq-256",
        "Apache 2.0",
        "faces of CelebA-HQ, 256x256: DiME, ACE (the thesis trained networks of its own on them)",
        pickle=True,
        presets=(("DiME", "paper/celebahq"), ("ACE", "paper/celebahq")),
        note="no pinned commit is known for the converted weights: the newest is taken",
    ),
    Published(
        "adm-imagenet-256",
        "openai",
        "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/256x256_diffusion_uncond.pt",
        "MIT",
        "any photograph, 256x256, without classes: DVCE, ACE, DiME, Blended Diffusion on ImageNet",
        file="256x256_diffusion_uncond.pt",
        size=2_211_383_297,
        sha256="a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1",
        pickle=True,
        presets=(
            ("ACE", "paper/imagenet"),
            ("DVCE", "paper/imagenet"),
            ("BlendedDiffusion", "paper/imagenet"),
        ),
        options=_ADM_256,
    ),
    Published(
        "sd-1.4",
        "hub",
        "CompVis/stable-diffusion-v1-4",
        "CreativeML OpenRAIL-M",
        "any photograph, 512x512, by text: LDCE-txt, TIME",
        revision="133a221b8aa7292a167afc5127cb63fb5005638b",
        presets=(
            ("LDCE", "paper/imagenet"),
            ("LDCE", "paper/celebahq"),
            ("LDCE", "paper/flowers"),
            ("LDCE", "paper/pets"),
            ("TIME", "paper/celebahq/smile"),
            ("TIME", "paper/celebahq/age"),
        ),
        note="use-based restrictions; accept the licence on its page where the hub asks for it",
    ),
    Published(
        "mini-sd",
        "hub",
        "lambda/miniSD-diffusers",
        "CreativeML OpenRAIL-M",
        "any photograph, 256x256, by text: LDCE-txt at a quarter of the cost",
        revision="26ed8a9bfbf76f46a6cf60517dde321f900c44ce",
        pickle=True,
        presets=(("LDCE", "paper/imagenet"),),
    ),
    Published(
        "dit-xl-2-256",
        "hub",
        "facebook/DiT-XL-2-256",
        "CC BY-NC 4.0",
        "the 1000 classes of ImageNet, 256x256: LDCE-cls",
        revision="eab87f77abd5aef071a632f08807fbaab0b704d0",
        pickle=True,
        presets=(("LDCE", "paper/imagenet/cls"),),
        note="for non-commercial use only",
    ),
    Published(
        "resnet50.tv_in1k",
        "hub",
        "timm/resnet50.tv_in1k",
        "BSD 3-Clause",
        "classifier of ImageNet, torchvision's first ResNet-50: the one that ACE and LDCE explain",
        revision="99108565f2fd2a9d8a1b640156f564d7f4ad7188",
        presets=_ANY,
    ),
    Published(
        "convnext_base.fb_in1k",
        "hub",
        "timm/convnext_base.fb_in1k",
        "Apache 2.0",
        "classifier of ImageNet, ConvNeXt-B",
        revision="9868d443015978c683675b2f78030a9c943033f8",
        presets=_ANY,
    ),
    Published(
        "swin_base_patch4_window7_224.ms_in22k_ft_in1k",
        "hub",
        "timm/swin_base_patch4_window7_224.ms_in22k_ft_in1k",
        "MIT",
        "classifier of ImageNet, Swin-B, as DVCE explains one; takes 224x224, images are resized for it",
        revision="ed1b4c7be86f695c51631487f0041064c67f5cf9",
        presets=_ANY,
    ),
    Published(
        "deit3_base_patch16_224.fb_in1k",
        "hub",
        "timm/deit3_base_patch16_224.fb_in1k",
        "Apache 2.0",
        "classifier of ImageNet, DeiT III-B; takes 224x224, images are resized for it",
        revision="82eac7cae20c76230ca81f9f62c61963beeb2ab4",
        presets=_ANY,
    ),
    Published(
        "resnet50-robust-l2-3",
        "robust",
        "madrylab/robust-imagenet-models",
        "MIT",
        "robust classifier of ImageNet (l2, eps 3): the cone of DVCE, and SVCE",
        revision="1c68d6e185c2a503ec164cc8f736b1642b12d769",
        file="resnet50_l2_eps3.ckpt",
        pickle=True,
        presets=(("DVCE", "paper/imagenet"), ("SVCE", "paper/imagenet")),
        options={"architecture": "resnet50", "num_classes": 1000, **_TIMM},
    ),
    Published(
        "simsiam-resnet50",
        "simsiam",
        "https://dl.fbaipublicfiles.com/simsiam/models/100ep/pretrain/checkpoint_0099.pth.tar",
        "CC BY-NC 4.0",
        "embedding of photographs: the metric S3",
        file="simsiam_100ep_checkpoint_0099.pth.tar",
        pickle=True,
        note="for non-commercial use only",
    ),
    Published(
        "lpips-alex",
        "lpips",
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "BSD 3-Clause",
        "the trunk of LPIPS; its linear weights come with the package lpips (BSD 2-Clause)",
        file="alexnet-owt-7be5be79.pth",
        size=244_408_911,
        sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        pickle=True,
        options={"net": "alex"},
    ),
    Published(
        "lpips-vgg",
        "lpips",
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "BSD 3-Clause",
        "the trunk of LPIPS in its variant VGG-16",
        file="vgg16-397923af.pth",
        sha256="397923af",
        pickle=True,
        options={"net": "vgg"},
    ),
    Published(
        "lpips-squeeze",
        "lpips",
        "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth",
        "BSD 3-Clause",
        "the trunk of LPIPS in its variant SqueezeNet 1.1, the smallest",
        file="squeezenet1_1-b8a52dc0.pth",
        sha256="b8a52dc0",
        pickle=True,
        options={"net": "squeeze"},
    ),
    Published(
        "vgg19",
        "vgg19",
        "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
        "BSD 3-Clause",
        "the perceptual network of DiME (relu3_4)",
        file="vgg19-dcbb9e9d.pth",
        size=574_673_361,
        sha256="dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
        pickle=True,
    ),
    Published(
        "inception-fid",
        "inception",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
        "Apache 2.0",
        "the network that FID is defined by",
        file="weights-inception-2015-12-05-6726825d.pth",
        size=95_628_359,
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        pickle=True,
    ),
    Published(
        "facenet-vggface2",
        "facenet",
        "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/20180402-114759-vggface2.pt",
        "MIT",
        "identity of faces: the metrics FS and FVA",
        file="20180402-114759-vggface2.pt",
        size=111_898_327,
        sha256="281cebca8662831adb987a874bdcb36e73f5b1c6dc5ee5878f305e985625d99b",
        pickle=True,
        note="an Inception-ResNet v1; the papers' FS and FVA look through a ResNet-50, so values cannot be compared with theirs",
    ),
)


def published() -> dict[str, Published]:
    """The published checkpoints, by the short name that `zoo.load` takes. The shipped ones are `zoo.names()`."""
    return {one.name: one for one in _ENTRIES}


def entry(name: str) -> Published:
    """One of them. Raises ValueError for an unknown name, with the nearest."""
    known = published()
    if name not in known:
        near = difflib.get_close_matches(name, known, 3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(
            f"there is no published checkpoint {name!r}; expected one of {', '.join(known)}.{hint}"
        )
    return known[name]
