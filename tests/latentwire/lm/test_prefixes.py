"""The beginning that sequences share, worked out by hand."""

from latentwire.lm.prefixes import common_beginning


def test_a_common_beginning_leaves_each_sequence_an_element():
    """The shortest sequence bounds the length, and so does the first difference of any pair."""
    assert common_beginning([(1, 2, 3), (1, 2, 4, 5), (1, 2, 3, 9)]) == 2
    assert common_beginning([(1, 2), (1, 2, 4)]) == 1
    assert common_beginning([(1, 2, 3), (1, 2, 3)]) == 2
    assert common_beginning([(1, 2, 3), (4,)]) == common_beginning([(1, 2), ()]) == 0
    assert common_beginning(["a book", "a boat"]) == 4
    assert common_beginning([[{"a": 1}, {"b": 2}], [{"a": 1}, {"b": 3}]]) == 1  # elements need no order
    assert common_beginning([(1, 2, 3)]) == common_beginning([]) == 0
