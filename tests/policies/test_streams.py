"""The order of examples in shards, and trainings on packs."""

import pickle
import shutil
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_loader import assert_same, examples_of
from test_train import assert_equal, small_recipe, weights

from policies import loader
from policies.cli import main
from policies.data import TrainingSet
from policies.loader import Draws, Feed
from policies.recipes import load_recipe
from policies.streams import Streams
from policies.train import train
from sensors.errors import InputError
from sensors.pack_source import open_source
from sensors.packing import pack
from vla.action_tokens import ActionTokenizer
from vla.parallel import Replicas


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def numbers(sizes: list[int]) -> np.ndarray:
    return np.repeat(np.arange(len(sizes)), sizes)


SIZES = st.lists(st.integers(1, 20), min_size=1, max_size=12)


@given(sizes=SIZES, batch=st.integers(1, 12), seed=st.integers(0, 9), reach=st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_each_lane_reads_each_of_its_examples_once_an_epoch_and_all_lanes_read_all(sizes, batch, seed, reach):
    streams = Streams(numbers(sizes), batch, seed, reach)
    assert batch % streams.lanes == 0
    for epoch in (0, 3):
        lanes = [streams.lane(epoch, lane) for lane in range(streams.lanes)]
        assert max(map(len, lanes)) - min(map(len, lanes)) <= 1
        assert sorted(np.concatenate(lanes).tolist()) == list(range(sum(sizes)))
    drawn = [index for draw in range(4) for index in streams.indices(draw)]
    first = [streams.indices(draw)[: streams.width] for draw in range(4)]
    assert len(drawn) == 4 * batch
    assert [i for part in first for i in part] == [streams._at(0, k) for k in range(4 * streams.width)]


@given(sizes=SIZES, reach=st.integers(1, 30), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_an_example_moves_no_farther_than_the_reach(sizes, reach, seed):
    streams = Streams(numbers(sizes), 4, seed, reach)
    for lane in range(streams.lanes):
        before = streams._laid_out(2)[streams._ends()[lane] : streams._ends()[lane + 1]]
        after = {int(index): place for place, index in enumerate(streams.lane(2, lane))}
        assert all(abs(after[int(index)] - place) <= reach for place, index in enumerate(before))


def test_few_shards_are_read_at_a_time_and_the_order_is_new_each_epoch():
    streams = Streams(numbers([50] * 40), 8, seed=0, reach=50)
    assert streams.lanes == 8
    lane = streams.lane(0, 3)
    windows = [len({int(streams.shards[index]) for index in lane[k : k + 50]}) for k in range(0, len(lane) - 50, 10)]
    assert max(windows) <= 4
    assert streams.lane(0, 3).tolist() != streams.lane(1, 3).tolist()
    assert np.mean(np.abs(np.diff(lane)) == 1) < 0.1  # shuffled within its reach


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_workers_read_shards_of_their_own(workers):
    streams = Streams(numbers([50] * 40), 16, seed=0, reach=20)
    streams.require_apart(workers)
    replicas = [Replicas(rank, workers) for rank in range(workers)]
    read = [{streams.shards[i] for draw in range(2000 // 16) for i in r.share(streams.indices(draw))} for r in replicas]
    assert set().union(*read) == set(range(40))
    assert sum(map(len, read)) <= 40 + 2 * streams.lanes  # but where two lanes meet, within a shard
    examples = [Counter(i for draw in range(125) for i in r.share(streams.indices(draw))) for r in replicas]
    assert sum(map(len, examples)) == 2000  # not one alike
    with pytest.raises(InputError, match=r"data\.shuffle: lanes: came 40 shards and a batch of 16: 16 lanes"):
        streams.require_apart(3)


def test_what_is_wanted_oftener_comes_oftener():
    chances = np.array([4.0, 1.0] * 30)
    streams = Streams(numbers([6] * 10), 4, seed=1, reach=6, chances=chances / chances.sum())
    counts = Counter(
        i for epoch in range(50) for lane in range(streams.lanes) for i in streams.lane(epoch, lane).tolist()
    )
    assert sum(counts.values()) == 50 * 60
    for index, chance in enumerate(chances / chances.sum()):
        assert counts[index] == pytest.approx(50 * 60 * chance, abs=1.01 + 0.2 * 50 * 60 * chance)


def test_another_process_finds_the_same_order():
    chances = np.random.default_rng(0).random(60)
    streams = Streams(numbers([6] * 10), 4, seed=1, reach=6, chances=chances / chances.sum())
    again = pickle.loads(pickle.dumps(streams))
    assert all(streams.indices(draw) == again.indices(draw) for draw in (40, 0, 17))


def test_what_shuffle_may_be():
    with pytest.raises(InputError, match=r"data\.shuffle: came -1, expected at least 0"):
        load_recipe("tiny", ["data.shuffle=-1"])
    with pytest.raises(InputError, match=r"data\.shuffle: came 5, expected 0"):
        load_recipe("image-tokens", ["data.shuffle=5"])


# Trainings ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(course_dataroot, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "pack"
    pack(course_dataroot, "v1.0-mini", path, shard_bytes=1)
    return path


def test_a_training_on_a_pack_is_the_training_on_its_dataroot(course_dataroot, packed, tmp_path):
    for name, dataroot in (("root", course_dataroot), ("pack", packed)):
        train(small_recipe(dataroot, "train.steps=2", "train.mirror=0.5"), tmp_path / name, progress=False)
    assert_equal(weights(tmp_path / "root"), weights(tmp_path / "pack"))


def packed_examples(place, recipe) -> TrainingSet:
    source = open_source(place, "v1.0-mini", recipe.model.steps, (64, 32))
    return TrainingSet([(source, source.scenes)], ActionTokenizer(recipe.model), recipe.model)


def test_draws_in_the_order_of_shards_are_the_same_from_both_and_by_two_workers(course_dataroot, packed):
    more = ["data.shuffle=5", "train.batch_size=6", "data.balance=0.5"]
    recipe = small_recipe(packed, *more)
    from_pack = Draws(packed_examples(packed, recipe), recipe, Replicas())
    from_root = Draws(examples_of(course_dataroot, recipe), recipe, Replicas())
    assert from_pack.streams.lanes == 3
    for draw in (0, 7):
        assert_same(from_pack[draw], from_root[draw])
    with pytest.raises(InputError, match="lanes"):
        Draws(packed_examples(packed, recipe), recipe, Replicas(0, 2))
    threes = [Draws(packed_examples(packed, recipe), recipe, Replicas(rank, 3))[7][0] for rank in range(3)]
    whole = from_pack[7][0]
    assert np.array_equal(np.concatenate([part.tokens for part in threes]), whole.tokens)


def test_a_broken_shard_is_passed_over_counted_and_bounded(packed, tmp_path, monkeypatch):
    bad = shutil.copytree(packed, tmp_path / "bad")
    path = bad / "images-00001.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    recipe = small_recipe(bad, "data.shuffle=5", "train.batch_size=6")
    examples = packed_examples(bad, recipe)
    draws = Draws(examples, recipe, Replicas())
    first = next(draw for draw in range(20) if any(examples.shards()[i] == 1 for i in draws.indices(draw)))
    with pytest.raises(InputError, match=r"files: came \d of \d+ examples with a broken one: .*images-00001\.tar"):
        Feed(Draws(examples, recipe, Replicas())).parts(first)
    monkeypatch.setattr(loader, "MOST_BROKEN", 0.5)
    feed, again = Feed(Draws(examples, recipe, Replicas())), Feed(Draws(examples, recipe, Replicas()))
    skipped = 0
    for draw in range(6):
        assert_same(feed.parts(draw), again.parts(draw))
        skipped += feed.skipped
    assert skipped > 0
    broken = {index for index in range(len(examples)) if examples.shards()[index] == 1}
    assert set(feed._broken) <= broken


def test_the_command_packs_verifies_and_tells(course_dataroot, tmp_path, capsys):
    place = tmp_path / "pack"
    assert main(["data", "pack", str(course_dataroot), str(place), "--shard-mb", "1"]) == 0
    assert main(["data", "verify", str(place)]) == 0
    assert main(["data", "stats", str(place), "--json", str(tmp_path / "stats.json")]) == 0
    assert (tmp_path / "stats.json").is_file()
    assert main(["data", "pack", str(course_dataroot), str(place)]) == 2
    (place / "images-00000.tar").write_bytes(b"")
    assert main(["data", "verify", str(place)]) == 1
    told = capsys.readouterr()
    assert "BROKEN  images-00000.tar" in told.out
    assert "a pack is there already" in told.err
    assert main(["data", "stats", str(tmp_path)]) == 2
