"""Damage of any kind in the JSON files of a tokenizer: the right ids, or one sentence."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agenticrec_jax.errors import InputError
from agenticrec_jax.testing.chat import chat_tokenizer
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.tokenizers.huggingface import read_hf_tokenizer
from agenticrec_jax.tokenizers.load import load_tokenizer

FILES = ("tokenizer.json", "tokenizer_config.json")
BESIDE = ("special_tokens_map.json", "generation_config.json", "added_tokens.json")
TEXT = "Pen 12 é <|im_end|>"
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 900)
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["BPE", "ByteLevel", "<|im_end|>", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "content", "id", "a"]), inner, max_size=3)
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A directory whose files a test changes and `restored` puts back."""
    return tmp_path_factory.mktemp("tokenizer")


def restored(directory):
    chat_tokenizer().save(directory)
    for name in BESIDE:
        (directory / name).write_text("{}")
    return {name: json.loads((directory / name).read_text()) for name in (*FILES, *BESIDE)}


def paths_of(raw, deepest=3):
    """Every field of an object and of the objects inside, as a path."""
    fields = raw.items() if isinstance(raw, dict) else enumerate(raw[:2])
    for name, value in fields:
        yield (name,)
        if isinstance(value, dict | list) and deepest > 1:
            inner = (
                dict(list(value.items())[:3]) if len(value) > 20 and type(value) is dict else value
            )
            yield from ((name, *rest) for rest in paths_of(inner, deepest - 1))


def replaced(raw, path, value):
    raw = json.loads(json.dumps(raw))
    inner = raw
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return raw


def check_damage(directory, name, content):
    """A tokenizer that loads has the ids of the library's own; InputError is one sentence."""
    (directory / name).write_text(content)
    try:
        tokenizer = load_tokenizer(directory)
    except InputError as error:
        sentence = str(error)
        assert "\n" not in sentence and len(sentence) < 1500
        assert "tokenizer" in sentence
        return
    for marker, index in tokenizer.added_tokens.items():
        assert tokenizer.encode_markup(marker) == [index]
    ids = tokenizer.encode_data(TEXT)
    assert not set(ids) & set(tokenizer.added_tokens.values())
    assert all(index < tokenizer.vocab_size for index in (*ids, *tokenizer.prefix))
    assert set(tokenizer.stop_ids) <= set(tokenizer.added_tokens.values())
    if name != "tokenizer.json":
        whole = chat_tokenizer()
        assert ids == whole.encode_data(TEXT) and tokenizer.turn_end == whole.turn_end


def check_a_field(directory, data):
    raw = restored(directory)
    name = data.draw(st.sampled_from(FILES + BESIDE))
    path = data.draw(st.sampled_from([*paths_of(raw[name]), ("eos_token",), ("later",)]))
    changed = replaced(raw[name], path, data.draw(VALUES))
    check_damage(directory, name, json.dumps(changed))


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_value_of_any_field_is_read_or_refused(directory, data):
    check_a_field(directory, data)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_value_of_any_field_is_read_or_refused_often(directory, data):
    check_a_field(directory, data)


@pytest.mark.parametrize("name", FILES + BESIDE)
@pytest.mark.parametrize("value", [None, 7, [], {}, [1], "text", {"a": {"b": None}}], ids=str)
def test_every_top_level_field_of_another_type_is_read_or_refused(directory, name, value):
    for field in restored(directory)[name]:
        check_damage(directory, name, json.dumps(restored(directory)[name] | {field: value}))
    check_damage(directory, name, json.dumps(value))
    restored(directory)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_or_nested_deeply_is_refused(directory, name):
    whole = json.dumps(restored(directory)[name])
    damaged = [whole[:size] for size in (0, 1, len(whole) // 3, len(whole) - 1)]
    for content in (*damaged, "[" * 100_000, '{"a":' * 100_000, whole[:-1] + ',"a":' + "[" * 9999):
        restored(directory)
        (directory / name).write_text(content)
        assert_names(refused(load_tokenizer, directory), directory / name, "JSON")


@pytest.mark.parametrize("name", BESIDE)
def test_files_that_are_not_read_may_hold_anything(directory, name):
    restored(directory)
    for content in ("", "{", "[" * 100_000, '{"eos_token": [1]}'):
        check_damage(directory, name, content)
        assert load_tokenizer(directory).stop_ids == chat_tokenizer().stop_ids


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("added_tokens",), None, ["added_tokens"]),
        (("added_tokens", 1), "x", ["added_tokens[1]", "'x'"]),
        (("added_tokens", 0, "content"), ["a"], ["added_tokens[0].content"]),
        (("added_tokens", 0, "id"), "5", ["added_tokens[0].id", "'5'"]),
        # The library gives such a token an id of its own.
        (("added_tokens", 0, "id"), 3, ["added_tokens", "<|endoftext|>", "found 3"]),
        (("model",), "BPE", ["byte-level BPE"]),
        (("model", "vocab", "a"), 3, ["different ids"]),
        (("model", "unk_token"), 3, ["no tokenizer"]),
        (("model", "end_of_word_suffix"), "</w>", ["model.end_of_word_suffix", "'</w>'"]),
        (("model", "continuing_subword_prefix"), "##", ["model.continuing_subword_prefix"]),
        (("model", "dropout"), 0.1, ["model.dropout", 0.1]),
        (("decoder",), [], ["byte-level BPE"]),
        (("decoder", "type"), ["ByteLevel"], ["byte-level BPE"]),
        (("normalizer",), ["a"], ["normalizer", "['a']"]),  # the library would prepend an a
        (("pre_tokenizer",), None, ["model", "bytes"]),
        (
            ("post_processor",),
            {
                "type": "RobertaProcessing",
                "sep": ["a", 1],
                "cls": ["b", 99999],
                "trim_offsets": True,
                "add_prefix_space": False,
            },
            ["post_processor", 99999],
        ),
        # These make the Rust code of the library panic, the last two after the file was read.
        (("normalizer",), {"type": "Precompiled", "precompiled_charsmap": ""}, ["Precompiled"]),
        (("model", "unk_token"), {}, ["no tokenizer"]),
        (
            ("post_processor",),
            {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "x", "type_id": 0}}],
                "pair": [],
                "special_tokens": {},
            },
            ["no tokenizer"],
        ),
    ],
    ids=str,
)
def test_what_is_wrong_in_a_tokenizer_is_named(directory, path, value, named):
    raw = restored(directory)["tokenizer.json"]
    (directory / "tokenizer.json").write_text(json.dumps(replaced(raw, path, value)))
    (directory / "tokenizer.model").unlink(missing_ok=True)
    assert_names(refused(load_tokenizer, directory), directory / "tokenizer.json", *named)


@pytest.mark.parametrize("role", ["eos_token", "pad_token"])
@pytest.mark.parametrize("value", [7, True, ["<|im_end|>"], {"id": 3}, {"content": 3}], ids=str)
def test_a_role_that_is_no_token_is_refused(directory, role, value):
    raw = restored(directory)["tokenizer_config.json"]
    (directory / "tokenizer_config.json").write_text(json.dumps(raw | {role: value}))
    sentence = refused(load_tokenizer, directory)
    assert_names(sentence, directory / "tokenizer_config.json", role)
    for text in ("<|im_end|>", {"content": "<|im_end|>"}, None):
        (directory / "tokenizer_config.json").write_text(json.dumps(raw | {role: text}))
        assert load_tokenizer(directory).turn_end == chat_tokenizer().turn_end


@pytest.mark.parametrize("role", ["eos_token", "pad_token"])
@pytest.mark.parametrize("name", ["<|no_such|>", "<|im_end|> ", "", "\ud800"])
def test_a_role_of_a_token_that_is_not_there_is_refused(directory, role, name):
    raw = restored(directory)["tokenizer_config.json"]
    for value in (name, {"content": name}):
        (directory / "tokenizer_config.json").write_text(json.dumps(raw | {role: value}))
        sentence = refused(load_tokenizer, directory)
        assert_names(sentence, f"{directory / 'tokenizer_config.json'}: {role}", repr(name))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_directory_or_a_link_to_nothing_in_the_place_of_a_file_is_refused(tmp_path, name):
    chat_tokenizer().save(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).mkdir()
    assert_names(refused(load_tokenizer, tmp_path), f"{tmp_path / name}: ", "a directory")
    (tmp_path / name).rmdir()
    (tmp_path / name).symlink_to(tmp_path / "nowhere")
    assert_names(refused(load_tokenizer, tmp_path), tmp_path / name, "no such file")


def test_a_directory_without_a_tokenizer_is_refused(tmp_path):
    assert_names(refused(read_hf_tokenizer, tmp_path), tmp_path / "tokenizer.json")
