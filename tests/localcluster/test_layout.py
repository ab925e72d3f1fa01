"""Names and numbers keep clusters apart."""

import itertools
import threading
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from localcluster.errors import LocalClusterError
from localcluster.layout import MAX_CLUSTERS, WHOLE_RANGE, Allocations, Layout, choose_number, foreign_networks

numbers = st.integers(min_value=0, max_value=MAX_CLUSTERS - 1)


@given(numbers, numbers)
def test_two_clusters_share_no_address_and_no_device(first, second):
    one, two = Layout("one", first), Layout("two", second)
    assert one.network.overlaps(two.network) == (first == second)
    assert (one.host_device == two.host_device) == (first == second)


@given(numbers)
def test_a_clusters_addresses_lie_in_its_network_and_do_not_overlap(number):
    layout = Layout("demo", number)
    link = IPv4Network((int(layout.network.network_address), 30))
    parts = [link, layout.services, layout.pods]
    assert layout.network.subnet_of(WHOLE_RANGE)
    assert all(part.subnet_of(layout.network) for part in parts)
    assert not any(one.overlaps(two) for one, two in itertools.combinations(parts, 2))
    assert {layout.host_address, layout.node_address} == set(link.hosts())
    assert layout.api_service_address in layout.services
    assert len(layout.host_device) <= 15  # what the kernel allows


@pytest.mark.parametrize("name", ["demo", "test", "a", "run-7", "a" * 20])
def test_names_that_serve(name):
    assert Layout(name, 0).node_name == f"lorafleet-{name}"


@pytest.mark.parametrize("name", ["", "Demo", "-a", "a-", "7", "a_b", "../etc", "a/b", "a" * 21, "a\n"])
def test_names_that_do_not(name):
    with pytest.raises(LocalClusterError, match="cannot name a cluster"):
        Layout(name, 0)


def test_a_number_is_free_when_neither_a_cluster_nor_the_machine_uses_its_addresses():
    assert choose_number([], []) == 0
    assert choose_number([0, 2], []) == 1
    assert choose_number([0], [IPv4Network("198.18.16.0/24")]) == 2
    with pytest.raises(LocalClusterError, match="No addresses are free"):
        choose_number([], [IPv4Network("198.18.0.0/15")])
    with pytest.raises(LocalClusterError, match="No addresses are free"):
        choose_number(range(MAX_CLUSTERS), [])


def test_routes_of_the_machine_count_unless_they_are_ours_or_too_wide_to_mean_it():
    routes = [
        {"dst": "default", "dev": "eth0"},
        {"dst": "0.0.0.0/1", "dev": "tun0"},
        {"dst": "198.18.0.0/20", "dev": "lorafleet0"},
        {"dst": "198.19.0.0/16", "dev": "tun0"},
        {"dst": "198.18.200.7", "dev": "eth0"},
        {"dst": "10.0.0.0/8", "dev": "eth0"},
        {"dst": "multicast", "dev": "eth0"},
    ]
    assert foreign_networks(routes, ["lorafleet0"]) == [IPv4Network("198.19.0.0/16"), IPv4Network("198.18.200.7/32")]


def test_a_name_keeps_its_number_until_it_is_released(tmp_path):
    shared = tmp_path / "a" / "shared"
    table = Allocations(tmp_path / "root", [shared])
    assert table.claim("demo", []).number == 0
    assert table.claim("test", []).number == 1
    assert table.claim("demo", []).node_address == IPv4Address("198.18.0.2")
    assert table.names() == ["demo", "test"]
    table.release("demo")
    assert table.find("demo") is None
    assert table.claim("other", []).number == 0
    table.release("other")
    assert shared.exists()
    table.release("test")
    assert not shared.exists()
    assert not (tmp_path / "root").exists()
    table.release("test")


def test_a_lost_table_is_read_from_the_clusters_folders(tmp_path):
    table = Allocations(tmp_path)
    layout = table.claim("demo", [])
    layout.state.mkdir(parents=True)
    (layout.state / "number").write_text(str(layout.number))
    (tmp_path / "allocations.json").write_text('{"de')
    assert table.find("demo") == layout
    assert table.claim("test", []).number == 1


def test_claims_at_the_same_time_get_different_numbers(tmp_path):
    found = []
    threads = [
        threading.Thread(target=lambda name=f"c{index}": found.append(Allocations(tmp_path).claim(name, []).number))
        for index in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(8))
