import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoquant.errors import DataError
from autoquant.tasks.splitting import MINIMUM, assign, pools


def test_default_sizes():
    sizes = {split: len(rows) for split, rows in assign(pools(range(1000)), 0).items()}
    assert sizes == {"calibration": 100, "search": 270, "certification": 630}
    assert len(assign(pools(range(10_000)), 0)["calibration"]) == 256


def test_test_data_alone_is_certified_on_and_what_it_shares_is_left_out():
    chosen = assign(pools(range(100), range(60, 140)), 0)
    assert chosen["certification"] == list(range(100, 180))
    assert set(chosen["calibration"]) | set(chosen["search"]) == set(range(60))


@given(keys=st.lists(st.integers(0, 60), min_size=80, max_size=200), seed=st.integers(0, 5))
def test_equal_keys_are_never_in_two_splits(keys, seed):
    try:
        chosen = assign(pools(keys), seed)
    except DataError:
        return  # so many equal keys that a split would be too small
    seen = [{keys[row] for row in rows} for rows in chosen.values()]
    assert sum(map(len, seen)) == len(set().union(*seen))
    assert all(len(rows) >= MINIMUM[split] for split, rows in chosen.items())


@given(total=st.integers(32, 500), seed=st.integers(0, 3))
def test_any_data_large_enough_for_the_minima_can_be_split(total, seed):
    chosen = assign(pools(range(total)), seed)
    rows = [row for part in chosen.values() for row in part]
    assert sorted(rows) == list(range(total))


def test_sizes_are_obeyed():
    sizes = {split: len(rows) for split, rows in assign(pools(range(100)), 0, {"certification": 70}).items()}
    assert sizes == {"calibration": 10, "search": 20, "certification": 70}


@pytest.mark.parametrize(
    ("total", "sizes", "says"),
    [
        (20, {}, "certification split has"),
        (100, {"certification": 10}, "--sizes certification=20"),
        (100, {"search": 200}, "there are 100"),
        (100, {"serach": 20}, "Did you mean 'search'"),
        (100, {"search": -1}, "positive whole number"),
    ],
)
def test_errors_teach(total, sizes, says):
    with pytest.raises(DataError, match=says):
        assign(pools(range(total)), 0, sizes)
