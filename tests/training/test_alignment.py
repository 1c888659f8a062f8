"""Alignment: the vectors of a second training come near those of the first, and every score stays what it was."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from frontrow.clients.cli import app
from frontrow.foundation.bundle import BundleError, load_bundle, read_manifest
from frontrow.foundation.model import FoundationModel
from frontrow.serving.homepage import HomepageEngine
from frontrow.serving.known import check_known
from frontrow.serving.store import Store
from frontrow.training import alignment
from frontrow.training.alignment import Space, _apart, align, balancing, drift, maps, moved, space_of, ways
from frontrow.training.batches import evaluation_batch
from frontrow.training.data import Dataset
from frontrow.training.export import export_bundle
from frontrow.training.train import train
from typer.testing import CliRunner

if TYPE_CHECKING:
    from conftest import TinyRun


@pytest.fixture(scope="module")
def other(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> FoundationModel:
    """The tiny model of another seed."""
    return train(tiny_run.data, replace(tiny_run.config, seed=1), tmp_path_factory.mktemp("other"))


@pytest.fixture(scope="module")
def aligned(other: FoundationModel, tiny_run: TinyRun, tiny_bundle: Path) -> tuple[FoundationModel, dict[str, Any]]:
    return align(other, tiny_run.data, tiny_bundle)


def scores(model: FoundationModel, data: Dataset) -> torch.Tensor:
    with torch.no_grad():
        members, _ = model.encode(*evaluation_batch(data, np.arange(len(data)), "test", 16, True))
        return members @ model.title_vectors().T


def turned(space: Space, seed: int) -> Space:
    """The space with its titles and members multiplied by a pair of maps that keeps every product."""
    rng = np.random.default_rng(seed)
    width = space.titles.shape[1]
    q = np.linalg.qr(rng.normal(size=(width, width)))[0] * rng.uniform(0.5, 2.0, width)
    p = np.linalg.inv(q).T
    return replace(
        space,
        titles=(space.titles.double() @ torch.from_numpy(q)).float(),
        members=(space.members.double() @ torch.from_numpy(p)).float(),
    )


def random_space(titles: int = 300, members: int = 200, width: int = 24) -> Space:
    rng = np.random.default_rng(5)
    scale = np.linspace(0.1, 3.0, width)
    return Space(
        np.arange(titles),
        torch.from_numpy(rng.normal(size=(titles, width)) * scale).float(),
        np.arange(members),
        torch.from_numpy(rng.normal(size=(members, width))).float(),
    )


def test_scores_keep_their_values_and_their_order(
    aligned: tuple[FoundationModel, dict[str, Any]], other: FoundationModel, tiny_data: Dataset
) -> None:
    before, after = scores(other, tiny_data), scores(aligned[0], tiny_data)
    assert (before - after).abs().max() <= 1e-5 * before.abs().max()
    apart = before.sort(dim=1).values.diff(dim=1) > 2e-5 * before.abs().max()
    assert apart.float().mean() > 0.9
    ranked = after.gather(1, before.argsort(dim=1))
    assert (ranked.diff(dim=1)[apart] > 0).all()


def test_vectors_come_nearer_to_the_reference(aligned: tuple[FoundationModel, dict[str, Any]]) -> None:
    before, after = aligned[1]["before"], aligned[1]["after"]
    assert before["titles"]["common"] == 120
    assert before["titles"]["cosine"] < 0.3 < after["titles"]["cosine"]
    assert after["members"]["cosine"] > before["members"]["cosine"]
    assert after["titles"]["distance"] < before["titles"]["distance"]


def test_a_space_that_was_only_turned_and_stretched_is_found_again() -> None:
    """Whatever pair of maps a training happened upon, as long as products are the same."""
    reference = random_space()
    new = turned(reference, 1)
    assert drift(new, reference)["titles"]["cosine"] < 0.5
    p, q = maps(new, reference)
    back = replace(
        new,
        titles=(new.titles.double() @ torch.from_numpy(q)).float(),
        members=(new.members.double() @ torch.from_numpy(p)).float(),
    )
    found = drift(back, reference)
    # The ridge below the moments is what is missing to 1.
    assert min(found["titles"]["cosine"], found["members"]["cosine"]) > 0.999


def test_the_pair_of_maps_is_an_identity_between_members_and_titles() -> None:
    reference = random_space()
    p, q = maps(turned(reference, 1), turned(reference, 2))
    np.testing.assert_allclose(p @ q.T, np.eye(24), atol=1e-9)


def test_balanced_members_and_titles_have_the_same_second_moments() -> None:
    space = random_space()
    p, q = balancing(space)
    halves = space.members.double().numpy() @ p, space.titles.double().numpy() @ q
    moments = [h.T @ h / len(h) for h in halves]
    scale = np.diag(moments[0]).max()
    np.testing.assert_allclose(moments[0], moments[1], atol=1e-2 * scale)
    np.testing.assert_allclose(moments[0], np.diag(np.diag(moments[0])), atol=1e-2 * scale)


def test_only_common_titles_count(tiny_data: Dataset) -> None:
    """Ids decide what is common, not places; titles of one side only change nothing."""
    reference = random_space()
    new = turned(reference, 3)
    few = replace(new, title_ids=new.title_ids[50:] + 0, titles=new.titles[50:])
    _, q = maps(few, reference)
    moved = (few.titles.double() @ torch.from_numpy(q)).float()
    assert torch.cosine_similarity(moved, reference.titles[50:]).mean() > 0.99


def test_the_nearest_way_is_taken_and_products_stay() -> None:
    """What a warm start barely moved is left alone, a turned space is turned back, a stretched one stretched back."""
    reference = random_space()
    rng = np.random.default_rng(3)
    q = np.linalg.qr(rng.normal(size=(24, 24)))[0]
    spaces = {
        "as they are": replace(reference, titles=reference.titles + 1e-3 * torch.randn(300, 24)),
        "orthogonal map": moved(reference, (q, q)),
        "balanced": turned(reference, 2),
    }
    for best, new in spaces.items():
        pairs = ways(new, reference)
        far = {way: _apart(drift(moved(new, pair), reference)) for way, pair in pairs.items()}
        assert far[best] <= min(far.values()) + 1e-9
        assert far["as they are"] > 0.1 or best == "as they are"
        for p, q_ in pairs.values():
            np.testing.assert_allclose(p @ q_.T, np.eye(24), atol=1e-9)


def test_a_bundle_is_aligned_to_itself_by_leaving_it_as_it_is(tiny_run: TinyRun, tiny_bundle: Path) -> None:
    same, found = align(tiny_run.model, tiny_run.data, tiny_bundle)
    assert found["way"] == "as they are"
    assert torch.equal(same.title_vectors(), tiny_run.model.eval().title_vectors())


@pytest.mark.parametrize("kept", [0, 23])
def test_too_few_common_titles_are_refused(kept: int) -> None:
    reference = random_space()
    strangers = np.arange(1000, 1300)
    strangers[:kept] = np.arange(kept)
    with pytest.raises(ValueError, match=f"only {kept} titles are in the reference"):
        maps(replace(reference, title_ids=np.sort(strangers)), reference)


def test_vectors_that_are_not_finite_are_refused() -> None:
    broken = random_space()
    broken.members[3, 1] = torch.nan
    with pytest.raises(ValueError, match="the reference's vectors have values that are not finite"):
        maps(random_space(), broken)


def test_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="24 wide and the reference's 16"):
        maps(random_space(), random_space(width=16))


def test_what_is_not_a_bundle_is_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a bundle"):
        align(tiny_run.model, tiny_run.data, tmp_path)


def test_an_aligned_bundle_serves_what_was_aligned(
    other: FoundationModel, tiny_run: TinyRun, tiny_bundle: Path, tmp_path: Path,
) -> None:  # fmt: skip
    """Model, vectors, index and known answers are of one space, and the manifest says how far it moved."""
    before = copy.deepcopy(other.state_dict())
    path = export_bundle(other, tiny_run.data, tmp_path, {}, align_to=tiny_bundle)
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items()), "the caller's model is another now"
    store = Store.open(path)
    torch.testing.assert_close(store.model.title_vectors(), store.vectors)
    check_known(HomepageEngine(store))
    told = read_manifest(path)["metrics"]["alignment"]
    assert told["manifest_sha256"] == read_manifest(tiny_bundle)["manifest_sha256"]
    served, reference = load_bundle(path).vectors, load_bundle(tiny_bundle).vectors
    assert float(torch.cosine_similarity(served, reference).mean()) == pytest.approx(told["after"]["titles"]["cosine"])
    ids = np.array([0, 1, 2])
    members, _ = store.model.encode(*evaluation_batch(tiny_run.data, ids, "test", 16, True))
    nearest = store.nearest(members.detach().numpy(), 10)
    expected = scores(other, tiny_run.data)[ids].argsort(dim=1, descending=True, stable=True)[:, :10]
    np.testing.assert_array_equal(nearest, expected.numpy())


def test_the_command_line_says_how_far_vectors_moved(tiny_run: TinyRun, tiny_bundle: Path, tmp_path: Path) -> None:
    given = ["export", "--run", tiny_run.run_dir, "--bundles", tmp_path, "--align-to", tiny_bundle]
    done = CliRunner().invoke(app, [*map(str, given)], catch_exceptions=False)
    assert "120 titles are in bundle 1 too: mean cosine of their vectors 1.000, aligned 1.000" in done.stdout
    assert "60 members are in bundle 1 too" in done.stdout


def test_members_of_both_stand_for_all(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "MEMBERS", 4)
    data, model = tiny_run.data, tiny_run.model
    both = data.member_ids[10:20]
    some = space_of(model, data.titles.ids, model.title_vectors(), data.member_ids, data.events, both)
    assert len(some.members) == 4
    assert set(some.member_ids) <= set(both)
    nobody = space_of(model, data.titles.ids, model.title_vectors(), data.member_ids, data.events, both[:0])
    assert nobody.member_ids[0] == data.member_ids[0]
