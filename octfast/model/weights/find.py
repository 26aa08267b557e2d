"""Finds a body's published weights on this machine, and downloads them where they are not there."""

from __future__ import annotations

import logging
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import torch

from octfast.console import in_terminal, is_quiet
from octfast.errors import WeightsError
from octfast.files import is_offline, sha256_of
from octfast.model.arch import FOUNDATIONS
from octfast.model.depths import DEPTHS
from octfast.model.weights import fetch
from octfast.model.weights.fetch import UnavailableError, exists_at, fetch_url, one_line

log = logging.getLogger("octfast")

BRING = "give --weights FILE (a .safetensors or .pth file) or --weights none (an untrained body)"


@dataclass(frozen=True)
class Origin:
    """Where the weights of one architecture are published.

    `url` is a plain file that belongs in torch's hub folder (may be empty); `hub_id` is a Hugging Face repository
    (may be empty) in which the first of `hub_files` that exists is taken.
    """

    arch: str
    url: str = ""
    hub_id: str = ""
    hub_files: tuple[str, ...] = ()

    @property
    def sha256_prefix(self) -> str:
        """The first digits of the SHA-256 that torchvision and timm write into a file's name, or ""."""
        found = re.search(r"-([0-9a-f]{8,64})\.", _url_name(self.url))
        return found.group(1) if found else ""

    @property
    def repository(self) -> tuple[str, str]:
        """The Hugging Face repository and its revision."""
        name, _, revision = self.hub_id.partition("@")
        return name, revision or "main"


@dataclass(frozen=True)
class Fetched:
    """A weights file on this machine: its path, its SHA-256 (hex), and whether it was downloaded just now."""

    path: Path
    sha256: str
    downloaded: bool


def weights_url(arch: str, library: str = "") -> str:
    """The address of the pretrained weights of `arch`, as `library` publishes them.

    `library` is "torchvision" or "timm"; empty for the first of the two that knows the name. Some names are known to
    both, and the files differ. Raises WeightsError where neither publishes any.
    """
    origin = find_origin(arch, library)
    return _hub_url(origin, origin.hub_files[0]) if origin.hub_id else origin.url


def expected_path(arch: str, library: str = "") -> Path:
    """Where the weights of `arch` are looked for on this machine: the file of `weights_url` can be put there by hand.

    Follows TORCH_HOME, HF_HOME and HF_HUB_CACHE. Raises WeightsError where no weights are published.
    """
    return _expected(find_origin(arch, library))


def cached_file(arch: str, library: str = "") -> Path | None:
    """The weights file of `arch` that torch or timm has already downloaded; None where there is none.

    Reads the whole file once: a damaged one is warned of and not given back.
    Raises WeightsError where no weights are published.
    """
    found = _find_cached(find_origin(arch, library))
    return found.path if found else None


def find_origin(arch: str, library: str = "") -> Origin:
    """Where `arch` is published: torchvision's default weights where it knows the name, else timm's.

    `library` is "torchvision" or "timm" to ask that one alone.
    Raises WeightsError where the name is not known or there are no weights for it.
    """
    from torchvision import models

    arch = arch.removesuffix(DEPTHS)
    if arch in FOUNDATIONS:
        about = FOUNDATIONS[arch]
        raise WeightsError(
            f"the weights of {arch} are handed out by their authors alone ({about.licence})",
            f"ask for them at {about.page}, then give --weights FILE",
        )
    if library != "timm" and arch in models.list_models(module=models):
        return Origin(arch, url=models.get_model_weights(arch).DEFAULT.url)

    import timm

    try:
        cfg = timm.get_pretrained_cfg(arch)
    except RuntimeError as error:  # a known model with an unknown tag
        raise WeightsError(f"no pretrained weights for {arch}: {one_line(error)}", BRING) from None
    if cfg is None or not (cfg.hf_hub_id or cfg.url):
        whom = "neither torchvision nor timm knows it" if cfg is None else "timm publishes none"
        raise WeightsError(f"no pretrained weights for {arch}: {whom}", BRING)
    # timm's foreign files (.npz) need code of the model's own to be read; its copies on the hub are state dicts
    url = "" if cfg.custom_load else cfg.url if isinstance(cfg.url, str) else (cfg.url or ("",))[0]
    if cfg.hf_hub_id and not (cfg.custom_load and cfg.hf_hub_filename):
        names = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")
        return Origin(arch, url=url, hub_id=cfg.hf_hub_id, hub_files=names)
    if not url:
        raise WeightsError(f"no pretrained weights for {arch}: octfast cannot read timm's file for it", BRING)
    return Origin(arch, url=url)


def obtain(arch: str, library: str = "", progress: bool | None = None) -> Fetched:
    """The published weights of `arch`: from this machine where they are, else downloaded.

    `library` : as for `find_origin`.
    `progress`: see `octfast.console.track_bytes`.
    Raises WeightsError where they cannot be had; its hint says what else can be done.
    """
    origin = find_origin(arch, library)
    found = _find_cached(origin)
    if found:
        return found
    try:
        if is_offline():
            raise UnavailableError("no sound copy on this machine, and OCTFAST_OFFLINE is set")
        if origin.hub_id:
            return _fetch_hub(origin, progress)
        target = _torch_path(origin.url)
        replaces = target.exists()
        sha256 = fetch_url(origin.url, target, origin.sha256_prefix, progress)
        if replaces:
            log.warning("%s was damaged and has been replaced by a new download", target)
        return Fetched(target, sha256, True)
    except UnavailableError as why:
        raise WeightsError(f"no pretrained weights for {arch}: {why}", _what_else(origin)) from why


def _what_else(origin: Origin) -> str:
    url = _hub_url(origin, origin.hub_files[0]) if origin.hub_id else origin.url
    return (
        f"give --weights FILE (a .safetensors or .pth file you brought, such as {url}), or copy that file "
        f"from another machine to {_expected(origin)} (TORCH_HOME and HF_HOME move that folder), "
        "or give --weights none (an untrained body)"
    )


def _expected(origin: Origin) -> Path:
    return _hub_expected(origin) if origin.hub_id else _torch_path(origin.url)


def _find_cached(origin: Origin) -> Fetched | None:
    """The file of an earlier download, its SHA-256 checked where it is known; None where there is no sound one."""
    candidates = [(_hub_cached(origin), "")] if origin.hub_id else []
    if origin.url:
        candidates.append((_torch_path(origin.url), origin.sha256_prefix))
    for path, prefix in candidates:
        if path is None or not path.is_file():
            continue
        expected = prefix or _blob_sha256(path)
        try:
            sha256 = sha256_of(path)
        except OSError as error:
            log.warning("%s cannot be read and is passed over: %s", path, error.strerror or error)
            continue
        if sha256.startswith(expected):
            return Fetched(path, sha256, False)
        was = sha256[:8]
        log.warning("%s is damaged and is passed over: its SHA-256 begins %s, not %s", path, was, expected[:8])
    return None


def _url_name(url: str) -> str:
    return urlparse(url).path.rsplit("/", 1)[-1]


def _torch_path(url: str) -> Path:
    """Where torch.hub, and so torchvision and timm, keeps the file of `url`."""
    return Path(torch.hub.get_dir()) / "checkpoints" / _url_name(url)


def _blob_sha256(path: Path) -> str:
    """The SHA-256 by which the hub's cache names the large file that `path` links to, or ""."""
    name = path.resolve().name
    return name if re.fullmatch("[0-9a-f]{64}", name) else ""


def _hub_cached(origin: Origin) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    repo, revision = origin.repository
    for name in origin.hub_files:
        found = try_to_load_from_cache(repo, name, revision=revision)
        if isinstance(found, str):
            return Path(found)
    return None


def _hub_url(origin: Origin, name: str) -> str:
    from huggingface_hub import constants, hf_hub_url

    repo, revision = origin.repository
    return hf_hub_url(repo, name, revision=revision, endpoint=constants.ENDPOINT)


def _hub_expected(origin: Origin) -> Path:
    from huggingface_hub import constants

    repo, revision = origin.repository
    folder = Path(constants.HF_HUB_CACHE) / ("models--" + repo.replace("/", "--"))
    ref = folder / "refs" / revision
    if ref.is_file():
        revision = ref.read_text(encoding="utf-8").strip()
    return folder / "snapshots" / revision / origin.hub_files[0]


def _fetch_hub(origin: Origin, progress: bool | None) -> Fetched:
    """Download from the Hugging Face hub into its own cache. Raises UnavailableError."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    # the variable is read when huggingface_hub is imported, which may have been before
    constants.HF_HUB_DISABLE_TELEMETRY = True
    if constants.HF_HUB_OFFLINE:
        raise UnavailableError("no sound copy on this machine, and HF_HUB_OFFLINE is set")
    repo, revision = origin.repository
    # asked first, because hf_hub_download tries a hub that cannot be reached six times more with 60 s each
    name = next((name for name in origin.hub_files if exists_at(_hub_url(origin, name))), None)
    if name is None:
        raise UnavailableError(f"there is no {_hub_url(origin, origin.hub_files[0])}")
    bar = in_terminal() if progress is None else progress
    quiet = not bar and not are_progress_bars_disabled()
    if progress is None and not bar and not is_quiet():
        print(f"downloading {repo}/{name}", file=sys.stderr, flush=True)
    if quiet:
        disable_progress_bars()
    try:
        path = Path(
            hf_hub_download(
                repo,
                name,
                revision=revision,
                etag_timeout=fetch.CONNECT_TIMEOUT,
                endpoint=constants.ENDPOINT,
                force_download=_hub_cached(origin) is not None,  # only a damaged copy leads here
            )
        )
        sha256 = sha256_of(path)
    except Exception as error:  # the hub's own errors, its HTTP library's (which has changed twice) and the disk's
        raise UnavailableError(f"the download of {repo}/{name} failed ({one_line(error)})") from error
    finally:
        if quiet:
            enable_progress_bars()
    if not sha256.startswith(_blob_sha256(path)):
        raise UnavailableError(f"what the hub sent for {repo}/{name} is damaged: its SHA-256 begins {sha256[:8]}")
    return Fetched(path, sha256, True)
