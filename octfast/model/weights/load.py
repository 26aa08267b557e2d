"""Loads a body's pretrained weights into it, from wherever they are, and reports what was loaded.

In this order: a file that the user names; what torch or timm has already downloaded; torchvision's or timm's own
download; an error that says what else can be done. Nothing is ever unpickled without weights_only=True.
"""

from __future__ import annotations

import copy
import logging
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octfast.errors import DataError, UsageError, WeightsError
from octfast.files import refuse_address, sha256_of
from octfast.model.arch import FOUNDATIONS
from octfast.model.weights.checkpoint import network_alone, read_tensors, retfound_hint
from octfast.model.weights.fetch import one_line
from octfast.model.weights.find import BRING, cached_file, expected_path, obtain, weights_url

__all__ = ["WeightsReport", "cached_file", "expected_path", "load_weights", "weights_url"]

log = logging.getLogger("octfast")

PICKLED = (".pth", ".pt", ".bin", ".pth.tar")
HEADS = ("classifier.", "fc.", "head.", "heads.")
# What a file that does not fit is compared with, to say what it is. Built on the meta device: shapes, no memory.
FAMILIAR = (
    *("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "resnext50_32x4d"),
    *("alexnet", "squeezenet1_0", "squeezenet1_1", "densenet121", "densenet161", "densenet169", "densenet201"),
    *("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0", "efficientnet_v2_s"),
    *("convnext_tiny", "convnext_small", "convnext_base", "vit_b_16", "swin_t", "inception_v3"),
)


@dataclass(frozen=True)
class WeightsReport:
    """What was loaded into a model, from where, and what was not.

    Attributes
    ----------
    source : "file" (the user's), "cache" (downloaded before), "download" (just now) or "none".
    file, path : the name of the file, and the whole path to it; empty where source is "none".
    sha256 : of the file, hex; None where source is "none".
    loaded : how many tensors were loaded.
    missing : names in the model that the file has not, or has in another shape; batch-norm counters are not listed.
    unused : names in the file that the model has no use for.
    renamed : how the file's names were changed to fit; empty where they were not.
    cast : the type of the file's tensors where it is not that of the model, such as "float16"; else empty.
    licence : of the weights, where it forbids a use; else empty.
    """

    source: str
    file: str = ""
    path: str = ""
    sha256: str | None = None
    loaded: int = 0
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    renamed: str = ""
    cast: str = ""
    licence: str = ""

    def describe(self) -> str:
        """One line for a person."""
        if self.source == "none":
            return "body weights: none (the body is untrained)"
        where = {"file": "", "cache": " (downloaded before)", "download": " (downloaded now)"}[self.source]
        cast = f" (from {self.cast})" if self.cast else ""
        parts = [f"body weights: {self.file}{where}, {self.loaded} tensors loaded{cast}"]
        if self.renamed:
            parts.append(self.renamed)
        if self.missing:
            parts.append(f"not in the file: {_first_of(self.missing)}")
        if self.unused:
            parts.append(f"unused: {_first_of(self.unused)}")
        if self.licence:
            parts.append(f"licence of the weights, and of a model made from them: {self.licence}")
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def load_weights(
    model: nn.Module,
    arch: str,
    weights: str | Path = "auto",
    *,
    needed: tuple[str, ...] = (),
    progress: bool | None = None,
) -> WeightsReport:
    """Load pretrained weights into `model` in place, and say what was loaded.

    Parameters
    ----------
    model : a freshly made whole torchvision or timm model, on the CPU.
    arch : its torchvision or timm name; the weights are those of the library that `model` is of.
    weights : "auto" (downloaded before, else downloaded now), "none", or a .safetensors, .pth, .pt or .bin file.
    needed : prefixes of the names that must all be loaded; empty for all but the classification layers: those of a
        timm model's own description, else "classifier", "fc", "head" and "heads".
    progress : see `octfast.console.track_bytes`.

    Raises
    ------
    WeightsError where there are none to be had, or the file cannot be read or is of another architecture; the model
    is then as it was. UsageError where `needed` names nothing in the model.
    """
    wanted = _needed_names(model, needed)
    if str(weights) == "none":
        return WeightsReport("none")
    if str(weights) == "auto":
        library = "timm" if type(model).__module__.startswith("timm.") else "torchvision"
        fetched = obtain(arch, library, progress)
        path, sha256, source = fetched.path, fetched.sha256, "download" if fetched.downloaded else "cache"
    else:
        path, source = _checked_path(weights), "file"
        sha256 = _hash_of_file(path)
    # The file of another architecture can hold all that this one needs, and more (resnet34 holds resnet18).
    # What was downloaded is known to be the right one.
    report = _load_file(model, arch, path, wanted, refuse_more=source == "file")
    licence = FOUNDATIONS[arch].licence if arch in FOUNDATIONS else ""
    return replace(report, source=source, sha256=sha256, licence=licence)


def _load_file(model: nn.Module, arch: str, path: Path, wanted: list[str], refuse_more: bool) -> WeightsReport:
    state = model.state_dict()
    tensors, renamed = network_alone(read_tensors(path), state)
    fits = _fitting(tensors, state)
    unused = tuple(name for name in tensors if name not in fits)
    if not all(name in fits for name in wanted):
        converted, left = _converted(model, tensors)
        if all(name in converted for name in wanted):
            fits, unused = converted, left
            renamed = "; ".join(filter(None, [renamed, f"converted to the names and shapes of {arch}"]))
    short = [name for name in wanted if name not in fits]
    heads = HEADS + _head_prefixes(model)
    parts = {name.split(".")[0] for name in wanted}
    more = [name for name in unused if name.split(".")[0] in parts and not name.startswith(heads)]
    if short or (more and refuse_more):
        if short:
            what = f"{short[0]} {_why_not(short[0], tensors, state)}"
        else:
            what = f"but it has {len(more)} more that are not {arch}'s, the first {more[0]}"
        count = f"{len(wanted) - len(short)} of {len(wanted)} needed tensors fit"
        hint = retfound_hint(tensors, arch) or _looks_like(tensors, arch)
        raise WeightsError(f"{path.name} does not fit {arch}: {count}, {what}", hint)
    bad = next((name for name in wanted if fits[name].is_floating_point() and not fits[name].isfinite().all()), None)
    if bad is not None:
        raise WeightsError(f"{path.name} holds numbers that are not finite, in {bad}", BRING)
    model.load_state_dict(fits, strict=False)
    kinds = {str(fits[name].dtype).removeprefix("torch.") for name in fits if fits[name].dtype != state[name].dtype}
    missing = tuple(name for name in state if name not in fits and not _is_counter(name))
    return WeightsReport(
        source="file",
        file=path.name,
        path=str(path),
        loaded=len(fits),
        missing=missing,
        unused=unused,
        renamed=renamed,
        cast=", ".join(sorted(kinds)),
    )


def _checked_path(weights: str | Path) -> Path:
    try:
        refuse_address(weights, "download it and give the file: --weights FILE")
    except DataError as error:
        raise WeightsError(error.message, error.hint) from None
    try:
        path = Path(weights).expanduser()
        if path.is_dir():
            raise WeightsError(f"{path} is a folder, not a weights file", "name the .safetensors or .pth file in it")
        if not path.exists():
            raise WeightsError(f"no weights file {path}", "--weights is auto, none or the path of a file")
        if not path.is_file():
            raise WeightsError(f"{path} is not a plain file", BRING)
        if path.stat().st_size == 0:
            raise WeightsError(f"{path} is empty", "copy or download it again")
    except (OSError, ValueError, RuntimeError) as error:  # too long a name, a null character, ~ of nobody
        raise WeightsError(f"{weights} cannot be read: {one_line(error)}", BRING) from error
    if not path.name.lower().endswith((".safetensors", *PICKLED)):
        message = f"{path.name} is not a kind of weights file that octfast reads"
        raise WeightsError(message, "give a .safetensors file, or a state dict saved as .pth, .pt or .bin")
    return path


def _hash_of_file(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or one_line(error)}", BRING) from error


def _fitting(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name in state
        and tensor.shape == state[name].shape
        and tensor.is_floating_point() == state[name].is_floating_point()
        and not tensor.is_complex()
    }


def _converted(model: nn.Module, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors as torchvision's and timm's own loading would convert older files, and the names left unused."""
    # torchvision converts DenseNet's in its builder, and others in hooks that load_state_dict runs
    layer = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)$")
    renamed = {layer.sub(r"\1\2", name): tensor for name, tensor in tensors.items()}
    convert = getattr(sys.modules.get(type(model).__module__), "checkpoint_filter_fn", None)  # timm's
    try:
        if convert is not None:
            renamed = convert(dict(renamed), model)
        state = model.state_dict()
        fits = _fitting(renamed, state)
        unfit = [name for name in renamed if name in state and name not in fits]
        probe = _without_values(model)
        result = probe.load_state_dict({k: v for k, v in renamed.items() if k not in unfit}, strict=False, assign=True)
    except Exception as error:  # it is foreign code, made for files other than this one
        log.debug("the weights could not be converted: %s", error)
        return {}, ()
    missing = set(result.missing_keys)
    loaded = {name: tensor for name, tensor in probe.state_dict().items() if name not in missing}
    return loaded, (*unfit, *result.unexpected_keys)


def _without_values(model: nn.Module) -> nn.Module:
    """A copy of a model with its tensors on the meta device, so that half a gigabyte is not copied to try names."""
    memo: dict[int, Any] = {id(b): b.to("meta") for b in model.buffers()}
    memo |= {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo)


def _needed_names(model: nn.Module, needed: tuple[str, ...]) -> list[str]:
    names = [name for name in model.state_dict() if not _is_counter(name)]
    if needed:
        wanted = [name for name in names if name.startswith(needed)]
    else:
        heads = _head_prefixes(model)
        wanted = [name for name in names if not name.startswith(heads)]
    if not wanted:
        raise UsageError(f"nothing in the model is named {' or '.join(needed) or 'as a body is'}")
    return wanted


def _head_prefixes(model: nn.Module) -> tuple[str, ...]:
    # timm says which layers these are; other layers under head. (ConvNeXt's head.norm) are part of its features
    classifier = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    own = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return tuple(f"{name}." for name in own) or HEADS


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _why_not(name: str, tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    if name not in tensors:
        return "is not in it"
    has, wants = tuple(tensors[name].shape), tuple(state[name].shape)
    return f"is {tensors[name].dtype}" if has == wants else f"has shape {has}, not {wants}"


def _looks_like(tensors: Mapping[str, Tensor], arch: str) -> str:
    """A hint naming the common torchvision network whose body these tensors are, where there is one."""
    from torchvision import models

    body = {n: t.shape for n, t in tensors.items() if not n.startswith((*HEADS, "AuxLogits.")) and not _is_counter(n)}
    for name in FAMILIAR:
        quick = {"init_weights": False} if name == "inception_v3" else {}
        with torch.device("meta"):
            state = models.get_model(name, weights=None, **quick).state_dict()
        own = {n: t.shape for n, t in state.items() if not n.startswith((*HEADS, "AuxLogits.")) and not _is_counter(n)}
        if own == body:
            if name == arch:
                break
            return f"its tensors are those of {name}: try --arch {name}"
    return f"its tensors are not those of a network octfast can name; give a file made for {arch}"


def _first_of(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
