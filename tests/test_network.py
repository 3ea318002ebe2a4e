"""What a graph says of depths."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.errors import CutBlocked, UnknownStage
from frostline.network import Cut, CutGraph, Stage


def graph_of(stages: int, blocked: frozenset[int] = frozenset()) -> CutGraph:
    return CutGraph(
        model="Chain",
        batch=2,
        stages=tuple(
            Stage(
                index=index,
                name=f"layer{index}",
                keys=(f"layer{index}.conv.weight",),
                parameters=index,
                flops=10,
                aliases=(f"layer{index}.norm",),
            )
            for index in range(stages)
        ),
        cuts=tuple(
            Cut(
                depth=depth,
                name=f"layer{depth - 1}" if depth else "",
                wires=(),
                bytes_per_sample=8,
                blocked="tied" if depth in blocked else None,
            )
            for depth in range(stages)
        ),
    )


@given(stages=st.integers(1, 20), data=st.data())
def test_every_way_to_write_a_depth_means_the_same(stages, data):
    graph = graph_of(stages)
    depth = data.draw(st.integers(0, graph.max_depth))

    ways = [depth, str(depth), depth - stages, str(depth - stages)]
    if depth:
        ways += [graph.stages[depth - 1].name, *graph.stages[depth - 1].aliases]

    assert {graph.resolve(way) for way in ways} == {depth}


@given(stages=st.integers(1, 20), blocked=st.frozensets(st.integers(0, 19)))
def test_open_depths_are_those_that_resolve(stages, blocked):
    graph = graph_of(stages, blocked)

    def resolves(depth):
        try:
            return graph.resolve(depth) == depth
        except CutBlocked:
            return False

    assert graph.open_depths == tuple(filter(resolves, range(stages)))


@given(stages=st.integers(1, 20))
def test_frozen_share_grows_from_nothing_to_all_but_the_head(stages):
    graph = graph_of(stages)

    shares = [graph.frozen_share(depth) for depth in range(stages)]

    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == pytest.approx((stages - 1) / stages)


@pytest.mark.parametrize("depth", [4, -5, True, 1.5, "layer9", "layer3"])
def test_depth_that_is_none_is_refused(depth):
    with pytest.raises(UnknownStage, match="UnknownStage: ") as caught:
        graph_of(4).resolve(depth)

    assert caught.value.depth == depth


def test_unknown_name_lists_the_near_ones():
    with pytest.raises(UnknownStage, match=r"named 'layr2'\. Near names: .*layer2.*lists all 3"):
        graph_of(4).resolve("layr2")


def test_head_is_said_to_be_always_live():
    with pytest.raises(UnknownStage, match="'layer3' is the head, which is always live"):
        graph_of(4).resolve("layer3")


def test_part_of_a_stage_is_told_where_it_lies():
    with pytest.raises(UnknownStage, match=r"'layer1\.conv' is no stage; its tensors belong to the stage 'layer1'"):
        graph_of(4).resolve("layer1.conv")


def test_blocked_depth_is_refused_with_its_reason_and_the_open_ones():
    with pytest.raises(CutBlocked, match=r"tied\. Open depths: 0, 2, 3") as caught:
        graph_of(4, frozenset({1})).resolve("layer0")

    assert (caught.value.depth, caught.value.reason) == (1, "tied")


def test_recording_is_no_part_of_the_fact():
    watched = graph_of(3).model_copy(update={"recording": object()})

    assert watched == graph_of(3)
    assert hash(watched) == hash(graph_of(3))
    assert "recording" not in watched.model_dump_json()
