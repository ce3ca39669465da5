import pytest
import torch

from drifting.data.bank import MemoryBank
from drifting.data.image_folder import ImageFiles, ImageRows
from drifting.data.latents import LatentCache, LatentRows
from drifting.data.pixels import to_signed
from drifting.data.sources import reference_samples, shuffled_indices
from drifting.data.streamed import RowBankSource, RowSource
from drifting.errors import InputError
from tests.support.image_folders import write_images
from tests.support.latent_caches import told_apart, write_cache

LABELS = torch.tensor([0] * 6 + [1] * 2 + [2] * 40)


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def cache(tmp_path):
    write_cache(tmp_path / "cache", told_apart(48), LABELS, scale=1.0, shift=0.0)
    return LatentCache(tmp_path / "cache")


@pytest.fixture
def spread(tmp_path):
    """Two images whose latents have mean 3 or, mirrored, -3, and standard deviation 0.5."""
    moments = told_apart(2, spread=0.5)
    moments[:, :, :2] = moments[:, :, :2].sign() * 3
    write_cache(tmp_path / "spread", moments, scale=2.0, shift=1.0)
    return LatentCache(tmp_path / "spread")


@pytest.fixture
def files(tmp_path):
    return ImageFiles(write_images(tmp_path / "images", {"a": 5, "b": 7}, channels=3), image_size=8)


def _rows(cache, **options):
    return LatentRows(cache, **{"labeled": True, "flip": True, "seed": 0, **options})


def _source(rows, *, per_class=4, unconditional=5, push=5, seed=3, **options) -> RowBankSource:
    classes = None if rows.labels is None else int(rows.labels.max()) + 1
    sizes = {"capacity_per_class": per_class, "unconditional_capacity": unconditional}
    bank = MemoryBank(classes, sample_shape=rows.shape, dtype=rows.dtype, **sizes)
    return RowBankSource(rows, bank, push_per_step=push, seed=seed, **options)


def _numbers(latents):
    """Return of which images latents of `told_apart` are, 0 to s - 1; all their numbers are the same."""
    torch.testing.assert_close(latents, latents[..., :1, :1, :1].expand_as(latents))
    return latents[..., 0, 0, 0].abs().round().long() - 1


def test_latents_have_the_mean_and_spread_that_their_moments_say(spread):
    taken = _rows(spread, flip=False, labeled=False).take(torch.zeros(4000, dtype=torch.long), torch.arange(4000))
    assert taken.shape == (4000, 2, 3, 3)
    assert float(taken.mean()) == pytest.approx((3 - 1) * 2, abs=0.02)
    assert float(taken.std()) == pytest.approx(0.5 * 2, abs=0.02)
    correlation = torch.corrcoef(taken.flatten(1).T) - torch.eye(18)
    assert float(correlation.abs().max()) < 0.08


def test_threads_change_nothing(spread, monkeypatch):
    indices, rows = torch.arange(300) % 2, _rows(spread, labeled=False)
    shared = rows.take(indices, torch.arange(300))
    monkeypatch.setattr("drifting.data.latents._AT_ONCE", 300)
    assert torch.equal(rows.take(indices, torch.arange(300)), shared)


def test_every_other_latent_is_of_the_mirror_image(cache):
    taken = _rows(cache).take(torch.full((1000,), 7), torch.arange(1000))[:, 0, 0, 0]
    assert taken.abs().tolist() == pytest.approx([8] * 1000)
    assert 430 < int((taken < 0).sum()) < 570
    assert float(_rows(cache, flip=False).take(torch.full((50,), 7), torch.arange(50)).min()) > 0


def test_every_other_image_is_mirrored(files):
    images = files.read(torch.arange(12))
    rows = ImageRows(files, labeled=True, flip=True, seed=0)
    taken = rows.take(torch.arange(12).repeat(20), torch.arange(240)).unflatten(0, (20, 12))
    same, mirrored = ((taken == seen).flatten(2).all(2) for seen in (images, images.flip(-1)))
    assert bool((same ^ mirrored).all())
    assert 90 < int(mirrored.sum()) < 150
    plain = ImageRows(files, labeled=True, flip=False, seed=0)
    assert torch.equal(plain.take(torch.arange(12), torch.arange(12)), images)


@pytest.mark.parametrize("kind", ["latents", "images"])
def test_seed_and_position_alone_decide_how_a_row_is_varied(spread, files, kind):
    def make(seed=0):
        if kind == "latents":
            return _rows(spread, labeled=False, seed=seed)
        return ImageRows(files, labeled=False, flip=True, seed=seed)

    indices, positions = torch.tensor([0, 1, 1, 0] * 8), torch.arange(100, 132)
    together = make().take(indices, positions)
    order = torch.randperm(32, generator=_rng())
    apart = torch.cat([make().take(indices[part], positions[part]) for part in order.split(5)])
    assert torch.equal(apart, together[order])
    assert not torch.equal(make().take(indices, positions + 1), together)
    assert not torch.equal(make(seed=1).take(indices, positions), together)


def test_source_draws_of_the_class_that_is_asked_for_without_replacement(cache):
    source = RowSource(_rows(cache))
    assert (source.num_classes, source.sample_shape) == (3, (2, 3, 3))
    drawn = _numbers(source.draw(torch.tensor([1, 2, 0]), 6, _rng()))
    assert sorted(drawn[0].tolist()) == [6] * 3 + [7] * 3
    assert len(set(drawn[1].tolist())) == 6
    assert min(drawn[1].tolist()) >= 8
    assert sorted(drawn[2].tolist()) == [0, 1, 2, 3, 4, 5]
    assert torch.equal(_numbers(source.draw(torch.tensor([1, 2, 0]), 6, _rng())), drawn)
    assert source.draw_unconditional(2, 3, _rng()).shape == (2, 3, 2, 3, 3)


def test_source_of_images_gives_floats(files):
    drawn = RowSource(ImageRows(files, labeled=False, flip=False, seed=0)).draw(None, 12, _rng())
    assert drawn.dtype == torch.float32
    expected = to_signed(files.read(torch.arange(12)))
    assert sorted(drawn[0].flatten(1).tolist()) == sorted(expected.flatten(1).tolist())


def test_reference_reads_no_more_than_it_returns(cache, monkeypatch):
    taken, take = [], LatentRows.take
    monkeypatch.setattr(LatentRows, "take", lambda rows, *asked: taken.append(len(asked[0])) or take(rows, *asked))
    reference = reference_samples(RowSource(_rows(cache)), 9, 0)
    assert [0 if n < 6 else 1 if n < 8 else 2 for n in _numbers(reference).tolist()] == [0, 1, 2] * 3
    assert taken == [9]


def test_bank_is_filled_class_by_class_and_reads_no_row_more(cache):
    progress = []
    source = _source(_rows(cache), on_progress=lambda done, total: progress.append((done, total)))
    drawn = _numbers(source.draw(torch.arange(3), 4, _rng()))
    assert source.bank.filled.tolist() == [4, 2, 4]
    assert int(source.tensors()["position"]) == 10
    assert progress == [(10, 10)]
    assert len(set(drawn[0].tolist())) == len(set(drawn[2].tolist())) == 4
    assert sorted(drawn[1].tolist()) == [6, 6, 7, 7]
    assert source.draw(torch.tensor([2]), 4, _rng()).shape == (1, 4, 2, 3, 3)
    assert int(source.tensors()["position"]) == 15


@pytest.mark.parametrize("push", [1, 5, 48, 100])
def test_every_epoch_has_each_row_once(cache, push):
    taken, rows = [], _rows(cache)
    kept = rows.take
    rows.take = lambda indices, positions: taken.append((indices, positions)) or kept(indices, positions)
    source = _source(rows, push=push)
    for _ in range(-(-96 // push) + 1):
        source.draw(torch.tensor([0]), 1, _rng())
    indices, positions = (torch.cat(part) for part in zip(*taken, strict=True))
    assert positions.tolist() == list(range(len(positions)))
    first, second = indices[:48], indices[48:96]
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(48))
    assert first.tolist() != second.tolist()


def test_bank_of_an_earlier_version_takes_the_rows_that_it_would_have_taken(cache):
    one = _source(_rows(cache))
    one.draw(torch.arange(3), 4, _rng())
    saved = {name: value for name, value in one.tensors().items() if not name.endswith(("turns", "numbers"))}
    taken, rows = [], _rows(cache)
    two = _source(rows)
    two.restore(saved)
    assert all(torch.equal(two.bank.rings[name].samples, rings.samples) for name, rings in one.bank.rings.items())
    kept = rows.take
    rows.take = lambda indices, positions: taken.append((indices, positions)) or kept(indices, positions)
    two.draw(torch.arange(3), 4, _rng())
    assert torch.equal(taken[0][0], shuffled_indices(48, 10, 5, 3))
    assert taken[0][1].tolist() == [10, 11, 12, 13, 14]


def test_first_unconditional_samples_are_of_a_class_as_often_as_its_rows(tmp_path):
    labels = torch.cat([torch.zeros(300), torch.ones(100)]).long()
    write_cache(tmp_path / "cache", told_apart(400), labels, shard_size=100)
    rows, counts = _rows(LatentCache(tmp_path / "cache")), []
    for seed in range(20):
        source = _source(rows, per_class=80, unconditional=40, seed=seed)
        source.draw(torch.tensor([0]), 1, _rng())
        numbers = source._origins.rings["unconditional"].samples[0, :, 0]
        assert len(set(numbers.tolist())) == 40
        counts.append(int((numbers < 300).sum()))
    assert sum(counts) / 800 == pytest.approx(0.75, abs=0.05)


def test_bank_of_images_keeps_bytes_and_gives_floats(files):
    source = _source(ImageRows(files, labeled=True, flip=False, seed=0), per_class=5)
    drawn = source.draw(torch.tensor([0]), 5, _rng())
    assert (source.bank.rings["classes"].samples.dtype, drawn.dtype) == (torch.uint8, torch.float32)
    assert sorted(drawn[0].flatten(1).tolist()) == sorted(to_signed(files.read(torch.arange(5))).flatten(1).tolist())
    assert source.draw_unconditional(1, 2, _rng()).dtype == torch.float32


@pytest.mark.parametrize("kind", ["latents", "images"])
@pytest.mark.parametrize("labeled", [True, False])
def test_resumed_source_goes_on_bit_for_bit(spread, cache, files, kind, labeled):
    if kind == "images":
        rows = ImageRows(files, labeled=labeled, flip=True, seed=1)
    else:
        rows = _rows(cache if labeled else spread, labeled=labeled)
    labels, rng, progress = torch.tensor([1, 0]) if labeled else None, _rng(), []
    one, two = _source(rows), _source(rows, on_progress=lambda done, total: progress.append((done, total)))
    for _ in range(4):
        one.draw(labels, 2, rng)
    saved = one.tensors()
    assert {name: tuple(value.shape[1:]) for name, value in saved.items() if name.endswith("samples")} == {
        "classes.samples": (4, 2),
        "unconditional.samples": (5, 2),
    }
    two.restore(saved)
    assert progress[-1][0] == progress[-1][1] == int(one.bank.filled.sum()) + one.bank.unconditional_filled
    for name, rings in one.bank.rings.items():
        assert torch.equal(two.bank.rings[name].samples, rings.samples)
    other = _rng()
    other.set_state(rng.get_state())
    for _ in range(3):
        assert torch.equal(one.draw(labels, 3, rng), two.draw(labels, 3, other))
        assert torch.equal(one.draw_unconditional(2, 3, rng), two.draw_unconditional(2, 3, other))


def test_state_that_does_not_fit_is_refused(cache):
    source = _source(_rows(cache))
    with pytest.raises(InputError, match=r"checkpoint is 'here', .*position is missing"):
        source.restore({}, "here")
    other = _source(_rows(cache), per_class=3).tensors()
    with pytest.raises(InputError, match=r"'here', .*classes\.samples is \(3, 3, 2\) of int64, not \(3, 4, 2\)"):
        source.restore(other, "here")
