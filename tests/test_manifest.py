"""What two stores differ in is said in words."""

from frostline.manifest import StoreKey, differences
from frostline.records import Wire

KEY = StoreKey(
    frozen="f", wires=(), samples="s", preparation="p", views=1, engine="torch", precision="float32", dtype="float32"
)


def test_equal_keys_differ_in_nothing():
    assert differences(KEY, KEY.model_copy()) == {}


def test_every_field_has_its_words():
    other = StoreKey(
        frozen="g",
        wires=(Wire(name="stem", shape=(1, 2), dtype="float32", order=(0, 1), bytes_per_sample=8),),
        samples="t",
        preparation="q",
        views=2,
        engine="openvino",
        precision="bfloat16",
        dtype="float16",
    )

    found = differences(KEY, other)

    assert list(found) == list(StoreKey.model_fields)
    assert found["precision"] == "precision: float32, wanted bfloat16"
    assert found["wires"] == "wires: , wanted stem (1, 2)"
