"""Options: flags, the YAML file under them, and what a mistake is told."""

import pytest

from util.options import OptionParser, add_flag, float_in, int_in


def build_parser(required=False):
    parser = OptionParser(prog="segment", removed={"--use_dvi": "it is read off the weights"})
    parser.add_argument("--input_path", required=required)
    parser.add_argument("--text_prompts", nargs="+", default=["a dog"])
    parser.add_argument("--num_steps", type=int_in(1, 300), default=1)
    parser.add_argument("--lr", type=float_in(0, 1, exclusive=True), default=1e-4)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--betas", type=float_in(0, 1), nargs=2, default=(0.9, 0.95))
    add_flag(parser, "--save_fig", False, "on or off")
    return parser


@pytest.fixture
def yaml_file(tmp_path):
    def write(text):
        path = tmp_path / "options.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def refusal(capsys):
    """Parses arguments that must be refused; returns the one line on stderr."""

    def parse(*arguments, parser=None):
        with pytest.raises(SystemExit) as caught:
            (parser or build_parser()).parse_args([str(argument) for argument in arguments])
        assert caught.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("segment: error: ")
        return line

    return parse


# Flags


@pytest.mark.parametrize(("arguments", "value"), [([], False), (["--save_fig"], True), (["--no-save_fig"], False)])
def test_a_flag_is_turned_on_by_its_name_and_off_by_no(arguments, value):
    assert build_parser().parse_args(arguments).save_fig is value


def test_no_turns_off_a_flag_that_is_on_by_default():
    parser = OptionParser(prog="segment")
    add_flag(parser, "--amp", True, "")
    assert parser.parse_args([]).amp is True
    assert parser.parse_args(["--no-amp"]).amp is False


def test_an_unknown_flag_suggests_the_nearest(refusal):
    line = refusal("--num_step", 3)
    assert "--num_step" in line
    assert "did you mean '--num_steps'?" in line


def test_an_unknown_flag_like_no_other_gets_no_suggestion(refusal):
    line = refusal("--zzzzzzzz")
    assert "--zzzzzzzz" in line
    assert "did you mean" not in line


def test_flags_cannot_be_abbreviated(refusal):
    assert "--input" in refusal("--input", "a.mp4")


def test_a_stray_word_is_refused(refusal):
    assert "stray" in refusal("stray")


@pytest.mark.parametrize("spelling", ["--use_dvi", "--use_dvi=1", "--no-use_dvi"])
def test_a_removed_flag_says_what_replaces_it(refusal, spelling):
    assert "--use_dvi was removed: it is read off the weights" in refusal(spelling)


def test_a_removed_key_says_what_replaces_it(refusal, yaml_file):
    path = yaml_file("use_dvi: true\n")
    line = refusal("--config", path)
    assert str(path) in line
    assert "use_dvi was removed: it is read off the weights" in line


def test_a_value_out_of_range_names_flag_range_and_value(refusal):
    line = refusal("--num_steps", 0)
    assert "--num_steps" in line
    assert "between 1 and 300" in line
    assert "got 0" in line


# The YAML file


def test_yaml_gives_defaults_that_flags_override(yaml_file):
    path = yaml_file("num_steps: 7\ntext_prompts: [a cat, the car]\nsave_fig: true\n")
    options = build_parser().parse_args(["--config", str(path), "--num_steps", "3"])
    assert (options.num_steps, options.text_prompts, options.save_fig) == (3, ["a cat", "the car"], True)


def test_a_flag_turned_off_overrides_yaml(yaml_file):
    path = yaml_file("save_fig: true\n")
    assert build_parser().parse_args([f"--config={path}", "--no-save_fig"]).save_fig is False


def test_values_equal_those_of_the_same_flags(yaml_file):
    # YAML 1.1 reads 5e-5 as a string; quoted numbers are strings as well.
    path = yaml_file("lr: 5e-5\nnum_steps: '12'\ninput_path: 2024\n")
    flags = ["--lr", "5e-5", "--num_steps", "12", "--input_path", "2024"]
    from_yaml = vars(build_parser().parse_args(["--config", str(path)]))
    from_flags = vars(build_parser().parse_args(flags))
    assert from_yaml | {"config": None} == from_flags
    assert from_yaml["lr"] == 5e-5


@pytest.mark.parametrize("text", ["", "# nothing but this\n"])
def test_an_empty_file_changes_nothing(yaml_file, text):
    options = build_parser().parse_args(["--config", str(yaml_file(text))])
    assert (options.num_steps, options.lr) == (1, 1e-4)


def test_a_required_flag_may_come_from_yaml(yaml_file, refusal):
    path = yaml_file("input_path: clip.mp4\n")
    assert build_parser(required=True).parse_args(["--config", str(path)]).input_path == "clip.mp4"
    assert "--input_path" in refusal(parser=build_parser(required=True))


def test_an_empty_entry_leaves_a_required_flag_required(yaml_file, refusal):
    path = yaml_file("input_path:\n")
    assert "--input_path" in refusal("--config", path, parser=build_parser(required=True))


def test_config_without_a_file_is_one_line(refusal):
    assert "--config" in refusal("--config")


def test_null_is_the_value_of_a_flag_without_default(yaml_file):
    assert build_parser().parse_args(["--config", str(yaml_file("input_path: null\n"))]).input_path is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("num_step: 3", ["unknown key 'num_step'", "did you mean 'num_steps'?"]),
        ("qqqqqqqq: 3", ["unknown key 'qqqqqqqq'"]),
        ("config: other.yaml", ["unknown key 'config'"]),
        ("help: true", ["unknown key 'help'"]),
        ("3: 4", ["unknown key '3'"]),
        ("num_steps: 0", ["num_steps", "between 1 and 300", "got 0"]),
        ("num_steps: 2.5", ["num_steps", "whole number", "2.5"]),
        ("num_steps: many", ["num_steps", "whole number", "many"]),
        ("num_steps: true", ["num_steps", "one plain value", "True"]),
        ("num_steps: null", ["num_steps", "one plain value", "None"]),
        ("num_steps: [1, 2]", ["num_steps", "one plain value", "[1, 2]"]),
        ("lr: {base: 1}", ["lr", "one plain value"]),
        ("lr: .nan", ["lr", "between 0 and 1", "nan"]),
        ("lr: 1", ["lr", "both excluded"]),
        ("dtype: fp16", ["dtype", "fp16", "bf16"]),
        ("save_fig: 1", ["save_fig", "true or false"]),
        ("save_fig: 'true'", ["save_fig", "true or false"]),
        ("text_prompts: true", ["text_prompts", "list", "True"]),
        ("betas: [0.9]", ["betas", "2 entries", "[0.9]"]),
        ("betas: [0.9, 2]", ["betas", "between 0 and 1"]),
        ("text_prompts: []", ["text_prompts", "list"]),
        ("text_prompts: [[a], b]", ["text_prompts", "one plain value"]),
        ("- num_steps", ["flag: value", "list"]),
        ("just words", ["flag: value", "str"]),
        ("num_steps: [1", ["not valid YAML"]),
        ("lr: !!python/object/apply:os.getcwd []", ["not valid YAML"]),
    ],
)
def test_a_mistake_in_yaml_is_told_with_file_and_key(refusal, yaml_file, text, words):
    path = yaml_file(text)
    line = refusal("--config", path)
    assert [word for word in [str(path), *words] if word not in line] == []


def test_a_missing_yaml_file_is_named(refusal, tmp_path):
    assert f"--config {tmp_path / 'absent.yaml'}" in refusal("--config", tmp_path / "absent.yaml")


def test_a_folder_is_no_yaml_file(refusal, tmp_path):
    assert f"--config {tmp_path}" in refusal("--config", tmp_path)


def test_a_binary_file_is_no_yaml_file(refusal, tmp_path):
    path = tmp_path / "weights.yaml"
    path.write_bytes(bytes(range(128, 256)))
    assert f"--config {path}" in refusal("--config", path)


# Ranges


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("5", 5), (" 3 ", 3)])
def test_int_in_takes_both_ends(text, value):
    assert int_in(1, 5)(text) == value


@pytest.mark.parametrize("text", ["0", "6", "-1", "2.0", "1e0", "nan", "inf", "", "two"])
def test_int_in_refuses_all_else(text):
    with pytest.raises(Exception, match=r"must be .*, got") as caught:
        int_in(1, 5)(text)
    assert type(caught.value).__name__ == "ArgumentTypeError"


def test_int_in_without_upper_end_has_none():
    assert int_in(1)("1000000000000") == 10**12
    with pytest.raises(Exception, match="at least 1, got 0"):
        int_in(1)("0")


@pytest.mark.parametrize(("text", "value"), [("0.1", 0.1), ("240", 240.0), ("5e-1", 0.5)])
def test_float_in_takes_both_ends(text, value):
    assert float_in(0.1, 240)(text) == value


@pytest.mark.parametrize("high", [None, 240])
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("text", ["nan", "NaN", "inf", "-inf", "1e999", "0", "-0.0", "fast", ""])
def test_float_in_refuses_what_is_below_or_not_finite(text, high, exclusive):
    with pytest.raises(Exception, match="must be") as caught:
        float_in(0.1, high, exclusive=exclusive)(text)
    assert type(caught.value).__name__ == "ArgumentTypeError"


@pytest.mark.parametrize("text", ["0", "1"])
def test_exclusive_float_in_refuses_its_ends(text):
    assert float_in(0, 1)(text) == float(text)
    with pytest.raises(Exception, match="both excluded"):
        float_in(0, 1, exclusive=True)(text)


def test_help_shows_defaults_but_no_none():
    parser = OptionParser(prog="x")
    parser.add_argument("--size", default=7, help="in pixels")
    parser.add_argument("--place", help="by default here")
    shown = parser.format_help()
    assert "in pixels (default: 7)" in shown
    assert "None" not in shown
