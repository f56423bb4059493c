"""What the benchmark suite computes from its measurements."""

import comparing
import echoing
import figures
import pytest
from figures import Spread


def result(costs, *, busy=1.0, connections=10):
    """What the load client says of a server: rounds of 100 requests in 10 ms at most."""
    rounds = [
        {
            "requests": 100,
            "seconds": 100 * cost / 1e6 / busy,
            "server_cpu_us": 100 * cost,
            "client_cpu_us": 50.0,
        }
        for cost in costs
    ]
    latency = {"p50": 50.0, "p99": 80.0, "max": 99.0}
    return {"rounds": rounds, "latency_us": latency, "connections": connections, "lost": 0}


def measurement(results):
    return {"place": "10 x 1 KiB", "connections": 10, "results": results}


def test_a_spread_has_the_median_and_the_quartiles():
    assert Spread.of([5, 1, 4, 2, 3]) == Spread(3, 2, 4)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)
    assert f"{Spread(1.234, 1, 2):.2f}" == "1.23 (1.00-2.00)"


def test_a_ratio_is_taken_round_by_round_and_skips_rounds_without_an_answer():
    assert figures.ratios([2.0, 9.0, 0.0, 8.0], [1.0, 3.0, 1.0, 0.0]) == [2.0, 3.0]
    assert figures.ratio([0.0], [1.0]) is None


def test_drift_that_falls_on_both_servers_leaves_their_ratio_alone():
    results = {"kloop": result([5, 10, 20]), "uvloop": result([10, 20, 40])}
    assert comparing.ratio(results, "kloop", "uvloop") == Spread(0.5, 0.5, 0.5)


def test_the_geometric_mean_of_a_ratio_and_its_inverse_is_one():
    assert figures.geometric_mean([4.0, 0.25]) == pytest.approx(1.0)


@pytest.mark.parametrize(("busy", "waited"), [(0.99, False), (0.91, False), (0.85, True)])
def test_a_server_that_had_time_to_wait_was_not_the_limit(busy, waited):
    assert figures.client_was_the_limit(result([5.0, 5.0, 5.0], busy=busy)) is waited


def test_kloop_is_compared_with_the_best_peer_not_with_the_floor_or_itself():
    results = {
        "floor": result([1.0]),
        "kloop": result([6.0]),
        "kloop.start_server": result([2.0]),
        "asyncio": result([9.0]),
        "zuvloop": result([5.0]),
        "kloop again": result([3.0]),
    }
    found = comparing.compare("echo", results)
    assert found is not None
    assert (found.peer, found.peer_value, found.kloop) == ("zuvloop", 5.0, 6.0)
    assert found.ratio.median == pytest.approx(1.2)
    assert found.noise is not None
    assert found.noise.median == pytest.approx(0.5)


def test_without_a_peer_there_is_nothing_to_compare():
    assert comparing.compare("echo", {"kloop": result([1.0]), "floor": result([1.0])}) is None


def test_requests_per_second_are_dropped_where_a_server_waited_for_the_client():
    busy = measurement({"kloop": result([5.0]), "uvloop": result([6.0])})
    idle = measurement({"kloop": result([5.0], busy=0.5), "uvloop": result([6.0])})
    idle["place"] = "10 x 100 KiB"
    table = echoing.rate_table("", [busy, idle])
    assert [row[0] for row in table.rows] == ["10 x 1 KiB", "10 x 1 KiB"]
    assert any("10 x 100 KiB" in note for note in table.notes)


def test_a_cost_table_marks_the_best_peer_and_leaves_a_gap_for_who_is_missing():
    here = measurement({"kloop": result([5.0]), "uvloop": result([6.0]), "zloop": result([7.0])})
    gone = measurement({"kloop": result([5.0]), "zloop": result([7.0])})
    table = echoing.cost_table("", [here, gone])
    assert table.head[:4] == ["connections x size", ">kloop", ">uvloop", ">zloop"]
    assert table.rows[0][1:5] == ["5.00", "**6.00**", "7.00", "0.83 (0.83-0.83)"]
    assert table.rows[1][1:5] == ["5.00", "", "**7.00**", "0.71 (0.71-0.71)"]
