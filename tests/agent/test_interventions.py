from agenticrec_jax.agent import interventions, scripted

TEXT = "brand bought:5,17,; popular:7,3,12,1,9,20,; 3 pens"


def test_permuting_renames_consistently_and_keeps_the_form():
    permuted = interventions.permute(TEXT + "; similar:7,5,", 11)
    before, after = scripted.read_orders(TEXT), scripted.read_orders(permuted)
    assert [len(order) for order in before.values()] == [len(after[label]) for label in before]
    assert after["similar"] == (after["popular"][0], after["brand bought"][0])
    assert after["popular"] != before["popular"] and permuted.endswith(",")
    assert "; 3 pens;" in permuted


def test_permuting_leaves_the_digits_of_titles_alone():
    title = "near h2: labels 1,200, 3,500, pack:2018, box"
    assert interventions.permute(title, 3) == title


def test_permuting_depends_on_the_example_and_is_repeatable():
    permuted = [interventions.permute(TEXT, example) for example in range(20)]
    assert permuted == [interventions.permute(TEXT, example) for example in range(20)]
    assert len(set(permuted)) == 20


def test_blank_says_the_same_of_everything():
    assert {interventions.blank(TEXT, 1), interventions.blank("", 2)} == {interventions.BLANK}
