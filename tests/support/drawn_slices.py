"""EndpointSlices of one service, drawn by hypothesis: conditions, nodes and hints of all kinds."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.support.k8s_objects import Json, endpoint_slice, port

condition = st.sampled_from([True, False, None])
names = st.sampled_from(["worker-1", "worker-2", None])


def _hints(draw_from: list[str]) -> st.SearchStrategy[list[Json]]:
    return st.lists(st.sampled_from(draw_from).map(lambda n: {"name": n}), max_size=2)


# Mostly hinted, else whole sets of hints would hardly ever occur.
hints = st.fixed_dictionaries(
    {
        "forZones": st.one_of(
            st.just([{"name": "zone-a"}]), st.just([{"name": "zone-b"}]), _hints(["zone-a", "z"])
        ),
        "forNodes": st.one_of(
            st.just([{"name": "worker-2"}]), st.just([]), _hints(["worker-1", "worker-2"])
        ),
    }
)
endpoints = st.builds(
    lambda address, node, conditions, hinted: {
        "addresses": [f"10.0.0.{address}"],
        "nodeName": node,
        "conditions": conditions,
        "hints": hinted,
    },
    st.integers(1, 5),
    names,
    st.fixed_dictionaries({"ready": condition, "serving": condition, "terminating": condition}),
    hints,
)
slice_ports = st.lists(
    st.sampled_from(
        [
            port(8080),
            port(8081),
            port(80, "other"),
            port(80, "http", "UDP"),
            {"name": "http", "protocol": "TCP"},
        ]
    ),
    max_size=2,
)
slices = st.lists(st.tuples(st.lists(endpoints, max_size=5), slice_ports), max_size=3).map(
    lambda parts: [
        endpoint_slice(f"svc1-{i}", endpoints=listed, ports=ports)
        for i, (listed, ports) in enumerate(parts)
    ]
)
