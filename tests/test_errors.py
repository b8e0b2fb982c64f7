from fcn_jax.errors import listed, width_by_height


def test_a_list_is_whole_or_says_how_much_is_missing():
    assert listed([], 2) == ""
    assert listed(["a", "b"], 2) == "a, b"
    assert listed(["a", "b", "c"], 2) == "a, b and 1 more"
    assert listed(range(2000), 1) == "0 and 1,999 more"


def test_sizes_are_told_width_first():
    assert width_by_height((375, 500)) == width_by_height((375, 500, 3)) == "500 × 375"
