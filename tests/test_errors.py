import pickle

from fcn_jax.errors import ArgumentError, UserError, format_value, listed, width_by_height


def test_an_error_of_an_argument_is_a_value_error_that_names_it():
    error = ArgumentError("model.skips", 5, "must be in 0…2")
    assert str(error) == "model.skips (=5) must be in 0…2"
    assert isinstance(error, UserError)
    assert isinstance(error, ValueError)
    assert (error.argument, error.value, error.problem) == ("model.skips", 5, "must be in 0…2")
    from_worker = pickle.loads(pickle.dumps(error))
    assert (type(from_worker), str(from_worker)) == (ArgumentError, str(error))


def test_values_are_shown_as_on_the_command_line_and_never_at_length():
    assert format_value((64, 0.5)) == "64,0.5"
    assert format_value(None) == "None"
    assert format_value(()) == "()"
    assert format_value((1,) * 17) == "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,…"
    assert format_value("a" * 300) == "a" * 200 + "…"
    assert format_value(10**5000) == "a whole number of 16610 bits"  # 5000 · log2(10) = 16609.6


def test_a_list_is_whole_or_says_how_much_is_missing():
    assert listed([], 2) == ""
    assert listed(["a", "b"], 2) == "a, b"
    assert listed(["a", "b", "c"], 2) == "a, b and 1 more"
    assert listed(range(2000), 1) == "0 and 1,999 more"


def test_sizes_are_written_width_first():
    assert width_by_height((375, 500)) == width_by_height((375, 500, 3)) == "500 × 375"
