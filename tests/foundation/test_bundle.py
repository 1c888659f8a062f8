"""A bundle is whole or refused: each kind of damage is named with its file, and none is visible half written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from frontrow.foundation import bundle as bundle_module
from frontrow.foundation.bundle import (
    MANIFEST,
    BundleError,
    bundle_versions,
    load_bundle,
    manifest_sha256,
    newest_bundle,
    write_bundle,
)
from frontrow.foundation.model import FoundationModel
from frontrow.training.data import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor

FILES = (
    "vocabularies.json",
    "titles.json",
    "rows.json",
    "known.json",
    "model.safetensors",
    "vectors.safetensors",
    "members.safetensors",
    "candidates.safetensors",
    "row_ranker.safetensors",
)


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that may be damaged."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "1"))


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    change(manifest)
    manifest["manifest_sha256"] = manifest_sha256(manifest)
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def rewrite(file: Path, content: bytes) -> None:
    """Replace a file and make the manifest agree: only its meaning is wrong now."""
    file.write_bytes(content)
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    edit_manifest(file.parent, lambda m: m["files"].update({file.name: entry}))


def rewrite_tensors(file: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    rewrite(file, file.read_bytes())


def rewrite_json(file: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(file.read_bytes())
    change(value)
    rewrite(file, json.dumps(value).encode())


def refuse(bundle: Path, *words: str) -> None:
    with pytest.raises(BundleError) as error:
        load_bundle(bundle).build_model()
    assert [w for w in words if w not in str(error.value)] == []


def test_round_trip(tiny_bundle: Path, tiny_model: FoundationModel, tiny_data: Dataset) -> None:
    found = load_bundle(tiny_bundle)
    model = found.build_model()
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in tiny_model.state_dict().items())
    assert not model.training
    assert (found.schema, found.version) == (tiny_data.schema, 1)
    assert (found.titles.names, found.titles.metadata) == (tiny_data.titles.names, tiny_data.titles.metadata)
    assert (found.title_ids == tiny_data.title_ids).all()
    assert (found.member_ids == tiny_data.member_ids).all()
    assert (found.histories.ids == tiny_data.events.ids).all()
    assert (found.histories.offsets == tiny_data.events.offsets).all()
    assert (found.histories.timestamp == tiny_data.events.timestamp).all()
    torch.testing.assert_close(found.vectors, model.title_vectors())
    assert {n: v.values for n, v in found.vocabularies.items()} == {
        n: v.values for n, v in tiny_data.vocabularies.items()
    }


def test_manifest_says_what_the_bundle_came_from(tiny_bundle: Path, tiny_data: Dataset) -> None:
    manifest = json.loads((tiny_bundle / MANIFEST).read_text())
    assert manifest["schema_hash"] == tiny_data.schema.hash
    assert manifest["data_fingerprint"] == tiny_data.fingerprint
    assert manifest["metrics"]["test"] == {"hr@10": 0.5}
    assert manifest["model_config"]["d_model"] == 32
    assert {"python", "torch", "numpy"} <= set(manifest["versions"])
    assert set(manifest["files"]) == set(FILES)


def test_a_changed_setting_in_the_manifest_is_refused(copy: Path) -> None:
    """Two heads in place of one fit the same weights: only the manifest's own checksum can tell."""
    text = (copy / MANIFEST).read_text()
    (copy / MANIFEST).write_text(text.replace('"state_layer": 1', '"state_layer": 2'))
    assert (copy / MANIFEST).read_text() != text
    refuse(copy, MANIFEST, "sha256")


def test_nothing_in_it_can_execute(tiny_bundle: Path) -> None:
    assert {f.name for f in tiny_bundle.iterdir()} == {*FILES, MANIFEST}
    for file in tiny_bundle.glob("*.json"):
        json.loads(file.read_bytes())
    for file in tiny_bundle.glob("*.safetensors"):
        load_file(file)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_byte_is_refused(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    refuse(copy, name, "sha256")


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_truncated_file_is_refused(copy: Path, name: str) -> None:
    (copy / name).write_bytes((copy / name).read_bytes()[:-1])
    refuse(copy, name)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_missing_file_is_refused(copy: Path, name: str) -> None:
    (copy / name).unlink()
    refuse(copy, name)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_the_manifest_does_not_list_is_refused(copy: Path, name: str) -> None:
    edit_manifest(copy, lambda m: m["files"].pop(name))
    refuse(copy, MANIFEST, name)


@pytest.mark.parametrize(
    "text",
    ["{}", "[]", '{"format": "other"}', "\x00", "[" * 100_000, '{"format": "frontrow-bundle", "format_version": 2}'],
    ids=lambda t: t[:20],
)
def test_a_foreign_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    refuse(tmp_path, MANIFEST)


def test_a_foreign_directory_and_a_file_are_refused(tmp_path: Path) -> None:
    refuse(tmp_path, str(tmp_path), "not a bundle")
    (tmp_path / "file").touch()
    refuse(tmp_path / "file", "file")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(format_version=1), ["format version 1", "reads 2", "export"]),
        (lambda m: m["schema"]["fields"][0].update(width=17), ["schema", "hash"]),
        (lambda m: m["schema"]["fields"].pop(), ["schema", "hash"]),
        (lambda m: m["schema"]["fields"][0].update(kind="?"), ["action_type"]),
        (lambda m: m.pop("schema"), ["schema"]),
        (lambda m: m.update(version="one"), ["one"]),
        (lambda m: m["files"].update({"rows.json": None}), ["rows.json"]),
        (lambda m: m["model_config"].update(d_model=64), ["model.safetensors"]),
        (lambda m: m["model_config"].update(d_model=33), ["model.safetensors", "33"]),
        (lambda m: m["model_config"].update(layers=3), ["model.safetensors"]),
        (lambda m: m["model_config"].update(colour=3), ["model.safetensors", "colour"]),
        (lambda m: m.pop("model_config"), ["model.safetensors", "model_config"]),
    ],
)
def test_an_edited_manifest_is_refused(copy: Path, change: Callable[[dict[str, Any]], Any], words: list[str]) -> None:
    edit_manifest(copy, change)
    refuse(copy, *words)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("model", lambda t: t.pop("heads.member.weight"), ["heads.member.weight"]),
        ("model", lambda t: t.update({"heads.member.bias": torch.zeros(3)}), ["heads.member.bias"]),
        ("vectors", lambda t: t.pop("titles"), ["titles"]),
        ("vectors", lambda t: t.update(titles=t["titles"][:-1].clone()), ["titles", "119"]),
        ("vectors", lambda t: t.update(titles=t["titles"][:, :-1].clone()), ["titles", "63"]),
        ("vectors", lambda t: t.update(titles=t["titles"].half()), ["titles", "float16", "float32"]),
        ("vectors", lambda t: t["titles"][3].fill_(float("nan")), ["titles", "not finite"]),
        ("members", lambda t: t.update(ids=t["ids"].float()), ["ids", "float32", "int32"]),
        ("members", lambda t: t.update(member_ids=t["member_ids"].flip(0)), ["member_ids", "sorted"]),
        ("members", lambda t: t.update(offsets=t["offsets"].int()), ["offsets", "int32"]),
        ("members", lambda t: t.pop("offsets"), ["offsets"]),
        ("members", lambda t: t.update(offsets=t["offsets"][:-1].clone()), ["offsets"]),
        ("members", lambda t: t.update(offsets=t["offsets"] + 1), ["offsets"]),
        ("members", lambda t: t.update(offsets=t["offsets"][[0, 2, 1, *range(3, 61)]]), ["offsets"]),
        ("members", lambda t: t["ids"][0].fill_(60_000), ["ids"]),
        ("members", lambda t: t["ids"][0].fill_(-1), ["ids"]),
        ("members", lambda t: t.update(ids=torch.tensor(3)), ["ids"]),
        ("members", lambda t: t.update(timestamp=t["timestamp"][1:].clone()), ["timestamp"]),
        ("candidates", lambda t: t.update(popularity=t["popularity"][1:].clone()), ["popularity"]),
        ("candidates", lambda t: t.update(item_item=t["item_item"][1:].clone()), ["item_item"]),
        ("candidates", lambda t: t.update(item_item=t["item_item"].float()), ["item_item", "float32"]),
        ("candidates", lambda t: t.update(item_item_scores=t["item_item_scores"][:, 1:].clone()), ["item_item_scores"]),
        ("candidates", lambda t: t.update(user_user=t["user_user"][:, 0].clone()), ["user_user"]),
        ("candidates", lambda t: t["item_item"][0].fill_(120), ["item_item"]),
        ("candidates", lambda t: t["user_user"][0].fill_(-2), ["user_user"]),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    copy: Path, file: str, change: Callable[[dict[str, Tensor]], Any], words: list[str]
) -> None:
    rewrite_tensors(copy / f"{file}.safetensors", change)
    refuse(copy, f"{file}.safetensors", *words)


def test_content_of_another_kind_is_refused(copy: Path) -> None:
    rewrite(copy / "vectors.safetensors", b"no tensors")
    refuse(copy, "vectors.safetensors")


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("titles", lambda v: v.pop("names")),
        ("titles", lambda v: v["names"].__setitem__(0, 7)),
        ("titles", lambda v: v["ids"].reverse()),
        ("titles", lambda v: v["ids"].__setitem__(0, 3)),
        ("titles", lambda v: v["metadata"].update(genres=["Drama"] * 120)),
        ("vocabularies", lambda v: v.pop("entity_id")),
        ("vocabularies", lambda v: v.pop("device")),
        ("vocabularies", lambda v: v.update(genres=["a", "a"])),
    ],
)
def test_documents_that_do_not_fit_are_refused(copy: Path, file: str, change: Callable[[Any], Any]) -> None:
    rewrite_json(copy / f"{file}.json", change)
    refuse(copy, f"{file}.json" if file == "titles" else "vocabularies.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.clear(),
        lambda v: v.update(answers=[]),
        lambda v: v.update(titles="8"),
        lambda v: v["context"].clear(),
        lambda v: v["answers"][0].pop("row_scores"),
        lambda v: v["answers"][0].update(row_scores=["high"]),
        lambda v: v["answers"][0]["title_scores"].pop(),
        lambda v: v["answers"].append(3),
    ],
)
def test_what_are_no_known_answers_is_refused(copy: Path, change: Callable[[Any], Any]) -> None:
    rewrite_json(copy / "known.json", change)
    refuse(copy, "known.json", "export the bundle again")


def test_a_path_that_is_no_bundle_is_told_from_a_folder_of_bundles(tiny_bundle: Path, tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere", "nowhere does not exist")
    refuse(tiny_bundle.parent, f"holds bundles [1]; name one of them, or use --bundles {tiny_bundle.parent}")


@pytest.mark.parametrize(("mask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_others_may_read_it_as_far_as_the_umask_lets_them(
    tiny_bundle: Path, tmp_path: Path, mask: int, file_mode: int, folder_mode: int
) -> None:
    before = os.umask(mask)
    try:
        bundle = write_next(tiny_bundle, tmp_path / "bundles")
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in bundle.iterdir()} == {file_mode}
    assert bundle.stat().st_mode & 0o777 == folder_mode


def test_documents_are_written_for_people(tiny_bundle: Path) -> None:
    """A line for each row."""
    lines = (tiny_bundle / "rows.json").read_text().splitlines()
    assert [json.loads(line.strip().rstrip(",")) for line in lines if "row_id" in line] == json.loads(
        (tiny_bundle / "rows.json").read_text()
    )["rows"]


def test_what_does_not_pass_its_check_becomes_no_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    def refuse_it(path: Path) -> None:
        raise BundleError(f"{load_bundle(path).version} answers otherwise")

    with pytest.raises(BundleError, match="1 answers otherwise"):
        write_next(tiny_bundle, tmp_path, check=refuse_it)
    assert list(tmp_path.iterdir()) == []


def write_next(bundle: Path, bundles: Path, **options: Any) -> Path:
    """The same bundle again, under the next number."""
    found = load_bundle(bundle)
    return write_bundle(
        bundles,
        {"schema": found.schema, "model_config": found.manifest["model_config"]},
        {n: json.loads((bundle / n).read_bytes()) for n in FILES if n.endswith(".json") and n != "titles.json"},
        found.titles,
        {n: load_file(bundle / n) for n in FILES if n.endswith(".safetensors")},
        **options,
    )


def test_bundles_are_numbered_upwards_past_anything_that_bears_a_number(tiny_bundle: Path, tmp_path: Path) -> None:
    for name in ("notes", "07", "²", ".writing-x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST).touch()
    (tmp_path / "4").mkdir()  # no bundle, but somebody's directory
    with pytest.raises(BundleError, match="frontrow export"):
        newest_bundle(tmp_path)
    assert [write_next(tiny_bundle, tmp_path).name for _ in range(2)] == ["5", "6"]
    assert bundle_versions(tmp_path) == [5, 6]
    assert newest_bundle(tmp_path) == tmp_path / "6"
    assert load_bundle(tmp_path / "6").version == 6
    assert bundle_versions(tmp_path / "nowhere") == []


@pytest.mark.parametrize("step", ["save_file", "_sha256", "_fsync"])
def test_a_crash_while_writing_leaves_nothing(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    found = tmp_path / "bundles"
    write_next(tiny_bundle, found)
    real = getattr(bundle_module, step)

    def crash(*arguments: Any) -> Any:
        if arguments[-1].parent == tiny_bundle:  # reading is not what fails
            return real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle_module, step, crash)
    with pytest.raises(KeyboardInterrupt):
        write_next(tiny_bundle, found)
    assert [p.name for p in found.iterdir()] == ["1"]


def test_a_process_killed_before_the_rename_leaves_no_bundle(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing cleans up after a kill: what is left behind has no bundle's name."""

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", crash)
    monkeypatch.setattr(bundle_module.shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
        write_next(tiny_bundle, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert bundle_versions(tmp_path) == []
    monkeypatch.undo()
    assert write_next(tiny_bundle, tmp_path).name == "1"
