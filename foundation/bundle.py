"""A bundle: one directory with everything a server needs from a training run, verified before it is used.

JSON and safetensors only: nothing in it can execute. Written to a temporary directory, fsynced, renamed, so that a
half-written bundle never bears a bundle's name. Loading checks every sha256 and every shape and names what is wrong.
Shape letters: B members, T events, C encoded columns, N titles, D vector width.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .embedding import table_size
from .encoding import Encoded
from .model import FoundationModel, ModelConfig
from .schema import Schema, SchemaError, Vocabulary
from .titles import Titles, encode_titles

FORMAT, FORMAT_VERSION = "frontrow-bundle", 2
MANIFEST = "manifest.json"
_JSON_FILES = ("vocabularies.json", "titles.json", "rows.json", "known.json")
_TENSOR_FILES = ("model.safetensors", "vectors.safetensors", "members.safetensors", "candidates.safetensors",
                 "row_ranker.safetensors")  # fmt: skip


class BundleError(ValueError):
    """A bundle cannot be used; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Bundle:
    """A verified bundle in memory.

    vectors: title vectors float32 [N, D]. histories: stored events of `member_ids` int64 [B], sorted.
    candidates: precomputed lists (see training/export.py). row_ranker: its weights. rows, known: parsed JSON.
    """

    path: Path
    version: int
    manifest: Mapping[str, Any]
    schema: Schema
    vocabularies: Mapping[str, Vocabulary]
    titles: Titles
    title_ids: np.ndarray
    weights: Mapping[str, Tensor]
    vectors: Tensor
    member_ids: np.ndarray
    histories: Encoded
    candidates: Mapping[str, Tensor]
    row_ranker: Mapping[str, Tensor]
    rows: Any
    known: Any

    @property
    def fingerprint(self) -> str:
        """Tells bundles of different content apart, whatever their numbers; empty while it is being made."""
        return str(self.manifest.get("manifest_sha256", ""))

    @property
    def times(self) -> dict[str, float]:
        """Seconds since 1970: `export`, when the bundle and its vectors were made; `newest_event`, of its data."""
        made = datetime.fromisoformat(self.manifest["created"]).timestamp()
        return {"export": made, **({"newest_event": float(self.manifest["as_of"])} if "as_of" in self.manifest else {})}

    def build_model(self) -> FoundationModel:
        """The foundation model in evaluation mode. Raises BundleError if the weights do not fit its config."""
        try:
            config = ModelConfig(**self.manifest["model_config"])
            sizes = {name: v.size for name, v in self.vocabularies.items()}
            model = FoundationModel(self.schema, config, sizes, torch.from_numpy(self.title_ids))
            model.load_state_dict(dict(self.weights))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise BundleError(f"{self.path / 'model.safetensors'} does not fit the manifest: {error}") from error
        return model.eval()


def vocabularies_by_path(schema: Schema, vocabularies: Mapping[str, Vocabulary]) -> dict[str, Vocabulary]:
    """Vocabularies by field name → by path, as `encode_titles` wants them."""
    return {f.path: vocabularies[f.name] for f in (*schema.fields, *schema.title_fields) if f.name in vocabularies}


def write_bundle(
    bundles: Path,
    manifest: Mapping[str, Any],
    documents: Mapping[str, Any],
    titles: Titles,
    tensors: Mapping[str, Mapping[str, Tensor]],
    check: Callable[[Path], None] = lambda path: None,
) -> Path:
    """Write the next numbered bundle under `bundles` and return its directory.

    manifest: schema, model_config, metrics, data_fingerprint, index, as_of. documents: JSON objects by file name.
    tensors: by file name, then tensor name. check: is given the bundle's directory before it is visible as a bundle.
    Raises what `load_bundle` and `check` raise, and then writes nothing.
    """
    bundles.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=bundles))
    try:
        for name, value in documents.items():
            (scratch / name).write_text(_readable(value), "utf-8")
        titles.save(scratch / "titles.json")
        for name, group in tensors.items():
            save_file({k: t.detach().cpu().contiguous() for k, t in group.items()}, scratch / name)
        files = {p.name: {"sha256": _sha256(p), "bytes": p.stat().st_size} for p in sorted(scratch.iterdir())}
        version = max(_numbers(bundles), default=0) + 1
        schema: Schema = manifest["schema"]
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "version": version,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **manifest,
            "schema": schema.to_dict(),
            "schema_hash": schema.hash,
            "versions": _versions(),
            "files": files,
        }
        content["manifest_sha256"] = manifest_sha256(content)
        (scratch / MANIFEST).write_text(json.dumps(content, indent=1, allow_nan=False), "utf-8")
        load_bundle(scratch)
        check(scratch)
        # As the umask wants it; safetensors and mkdtemp write for their owner alone, but another user may serve.
        mode = (scratch / MANIFEST).stat().st_mode & 0o644
        for file in scratch.iterdir():
            file.chmod(mode)
        scratch.chmod(mode | (mode & 0o444) >> 2)
        for file in [*scratch.iterdir(), scratch]:
            _fsync(file)
        final = bundles / str(version)
        scratch.rename(final)
        _fsync(bundles)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return final


def _readable(document: Mapping[str, Any]) -> str:
    """JSON for people too, who edit rows.json: a line for each key, and for each object in a list."""

    def text(value: Any, indent: str = "") -> str:
        if indent and isinstance(value, list) and any(isinstance(v, dict) for v in value):
            return "[" + ",".join(f"\n{indent}{text(v)}" for v in value) + "\n ]"
        return json.dumps(value, ensure_ascii=False)

    return "{" + ",".join(f"\n {text(k)}: {text(v, '  ')}" for k, v in document.items()) + "\n}\n"


def manifest_sha256(manifest: Mapping[str, Any]) -> str:
    """sha256 of a manifest's content without its own `manifest_sha256`."""
    content = json.loads(json.dumps({k: v for k, v in manifest.items() if k != "manifest_sha256"}))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def bundle_versions(bundles: Path) -> list[int]:
    """Numbers of the bundles under a directory, rising."""
    if not bundles.is_dir():
        return []
    return sorted(n for n in _numbers(bundles) if (bundles / str(n) / MANIFEST).is_file())


def _numbers(bundles: Path) -> list[int]:
    """Every number that is the name of something under a directory, bundle or not."""
    return [int(p.name) for p in bundles.iterdir() if p.name.isdecimal() and p.name == str(int(p.name))]


def newest_bundle(bundles: Path) -> Path:
    """The active bundle: the one with the highest number. Raises BundleError if there is none."""
    versions = bundle_versions(bundles)
    if not versions:
        raise BundleError(
            f"no bundle in {bundles}; make one with `frontrow train` and `frontrow export`, or `make demo`"
        )
    return bundles / str(versions[-1])


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, every file's size and sha256 checked. Raises BundleError naming the file."""
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        if versions := bundle_versions(path):
            raise BundleError(f"{path} holds bundles {versions}; name one of them, or use --bundles {path}") from error
        what = f"is not a bundle: it has no {MANIFEST}" if path.exists() else "does not exist"
        raise BundleError(f"{path} {what}") from error
    except (OSError, RecursionError, ValueError) as error:
        raise BundleError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(f"{file} is not the manifest of a Frontrow bundle")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise BundleError(
            f"{file} has format version {manifest.get('format_version')!r}, this Frontrow reads {FORMAT_VERSION}; "
            "export the bundle again"
        )
    if manifest.get("manifest_sha256") != manifest_sha256(manifest):
        raise BundleError(f"{file} is corrupt: its content does not have the sha256 that it states")
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise BundleError(f"{file} lists no files")
    for name in (*_JSON_FILES, *_TENSOR_FILES):
        if name not in files:
            raise BundleError(f"{file} does not list {name}")
        part, said = path / name, files[name]
        if not isinstance(said, dict):
            raise BundleError(f"{file} says nothing about {name}")
        if not part.is_file():
            raise BundleError(f"{part} is missing")
        if part.stat().st_size != said.get("bytes"):
            raise BundleError(f"{part} has {part.stat().st_size} bytes, the manifest says {said.get('bytes')}")
        if (found := _sha256(part)) != said.get("sha256"):
            raise BundleError(f"{part} is corrupt: sha256 {found}, the manifest says {said.get('sha256')}")
    return manifest


def load_bundle(path: Path) -> Bundle:
    """Verify and read a bundle. Raises BundleError naming the file that is missing, corrupt, foreign or misshapen."""
    path = Path(path).resolve()
    manifest = read_manifest(path)
    try:
        schema = Schema.from_dict(manifest["schema"])
        version = int(manifest["version"])
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path / MANIFEST}: {error}") from error
    if schema.hash != manifest.get("schema_hash"):
        raise BundleError(
            f"{path / MANIFEST}: the schema's hash is {schema.hash}, the manifest says {manifest.get('schema_hash')}; "
            "the bundle was made by another version of Frontrow, export it again"
        )
    documents = {name: _read_json(path / name) for name in _JSON_FILES if name != "titles.json"}
    tensors = {name: _read_tensors(path / name) for name in _TENSOR_FILES}
    try:
        titles = Titles.load(path / "titles.json")
        vocabularies = {name: Vocabulary(v) for name, v in documents["vocabularies.json"].items()}
        title_ids = encode_titles(schema, vocabularies_by_path(schema, vocabularies), titles)
    except (AttributeError, KeyError, SchemaError, TypeError, ValueError) as error:
        raise BundleError(f"{path}: titles.json and vocabularies.json do not fit the schema: {error}") from error
    members, vectors = tensors["members.safetensors"], tensors["vectors.safetensors"]
    count = len(titles)
    candidates = tensors["candidates.safetensors"]
    expected: dict[str, _Expected] = {
        "vectors.safetensors": {"titles": (torch.float32, (count, schema.id_field.width))},
        "members.safetensors": {
            "member_ids": (torch.int64, (None,)),
            "offsets": (torch.int64, (_size(members, "member_ids") + 1,)),
            "ids": (torch.int32, (None, schema.width)),
            "timestamp": (torch.int64, (_size(members, "ids"),)),
        },
        "candidates.safetensors": {
            "popularity": (torch.int64, (count,)),
            "item_item": (torch.int32, (count, None)),
            "item_item_scores": (torch.float32, (count, _size(candidates, "item_item", 1))),
            "user_user": (torch.int32, (_size(members, "member_ids"), None)),
        },
    }
    for name, tensors_wanted in expected.items():
        _check_tensors(path / name, tensors[name], tensors_wanted)
    _check_known(path / "known.json", documents["known.json"])
    if missing := [f.name for f in schema.fields if f.has_vocabulary and f.name not in vocabularies]:
        raise BundleError(f"{path / 'vocabularies.json'} lacks {missing}")
    if vocabularies[schema.id_field.name].values != titles.ids.tolist():
        raise BundleError(f"{path / 'vocabularies.json'}: the title ids are not those of titles.json")
    sizes = {name: v.size for name, v in vocabularies.items()}
    limits = torch.tensor([table_size(f, sizes) for f in schema.fields for _ in range(f.slots)])
    offsets, ids = members["offsets"], members["ids"]
    if int(offsets[0]) or int(offsets[-1]) != len(ids) or (offsets.diff() < 0).any():
        raise BundleError(f"{path / 'members.safetensors'}: offsets are out of range")
    if (members["member_ids"].diff() <= 0).any():
        raise BundleError(f"{path / 'members.safetensors'}: member_ids are not sorted")
    if ((ids < 0) | (ids >= limits)).any():
        raise BundleError(f"{path / 'members.safetensors'}: ids are out of range")
    for name in ("item_item", "user_user"):
        if (((lists := candidates[name]) < -1) | (lists >= count)).any():
            raise BundleError(f"{path / 'candidates.safetensors'}: {name} is out of range")
    histories = Encoded(members["ids"].numpy(), members["timestamp"].numpy(), members["offsets"].numpy())
    return Bundle(
        path=path, version=version, manifest=manifest, schema=schema, vocabularies=vocabularies, titles=titles,
        title_ids=title_ids, weights=tensors["model.safetensors"], vectors=vectors["titles"],
        member_ids=members["member_ids"].numpy(), histories=histories, candidates=candidates,
        row_ranker=tensors["row_ranker.safetensors"], rows=documents["rows.json"], known=documents["known.json"],
    )  # fmt: skip


# By tensor name: dtype, and shape with None for any size.
_Expected = Mapping[str, tuple[torch.dtype, tuple[int | None, ...]]]


def _size(tensors: Mapping[str, Tensor], name: str, axis: int = 0) -> int:
    return tensors[name].shape[axis] if name in tensors and tensors[name].dim() > axis else -1


def _check_tensors(file: Path, tensors: Mapping[str, Tensor], expected: _Expected) -> None:
    for name, (dtype, shape) in expected.items():
        if name not in tensors:
            raise BundleError(f"{file} lacks the tensor {name!r}")
        if tensors[name].dtype != dtype:
            raise BundleError(f"{file}: tensor {name!r} has dtype {tensors[name].dtype}, expected {dtype}")
        if dtype.is_floating_point and not tensors[name].isfinite().all():
            raise BundleError(f"{file}: tensor {name!r} has values that are not finite")
        found = tuple(tensors[name].shape)
        if len(found) != len(shape) or any(w is not None and w != f for w, f in zip(shape, found, strict=True)):
            wanted = ["any" if s is None else s for s in shape]
            raise BundleError(f"{file}: tensor {name!r} has shape {list(found)}, expected {wanted}")


def _check_known(file: Path, known: Any) -> None:
    try:
        whole = [known["rows"], known["titles"], known["context"]["timestamp"]]
        for answer in known["answers"]:
            whole.append(answer["member_id"])
            row_scores = np.array(answer["row_scores"], np.float32)
            np.array(answer["title_scores"], np.float32).reshape(*row_scores.shape, known["titles"])
        if not known["answers"] or not all(type(n) is int for n in whole):
            raise ValueError("no answers, or fractions for integers")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise BundleError(f"{file} does not hold known answers ({error!r}); export the bundle again") from error


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (RecursionError, ValueError) as error:
        raise BundleError(f"{file} is not JSON: {error}") from error


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{file} is not a safetensors file: {error}") from error


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _versions() -> dict[str, str]:
    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    names = ("frontrow", "torch", "numpy", "safetensors", "faiss-cpu")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
