"""Presets of memory: what fits, what flags hold fast, what a retry lowers."""

from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch

import inference_demo
from engine.demo.vram import GIB, PRESETS, choose_preset, next_smaller, preset_named, run_within_memory, with_flags
from models.windows import choose_windows
from util.errors import TooLittleMemoryError, TooLittleToLoadError, UserError
from util.flags import VRAM_CHOICES

UNSET = Namespace(text_on=None, window=None, tiling=None, prompt_batch=None)


def flags(**given):
    return Namespace(**{**vars(UNSET), **given})


def test_every_name_of_vram_is_a_preset_and_each_needs_less_than_the_one_before():
    assert [preset.name for preset in PRESETS[1:]] == list(VRAM_CHOICES[1:])
    needs = [preset.needs for preset in PRESETS]
    assert needs == sorted(needs, reverse=True)
    assert all(preset.needs < float(preset.name) for preset in PRESETS[1:])
    assert all(choose_windows(preset.window) for preset in PRESETS)


@pytest.mark.parametrize(("free", "name"), [(79, "whole"), (30, "24"), (15, "16"), (11, "12"), (7.4, "8"), (2, "8")])
def test_auto_takes_the_largest_preset_that_fits_the_free_memory(monkeypatch, free, name):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(free * GIB), 80 * GIB))
    assert choose_preset("auto", SimpleNamespace(type="cuda")).name == name


def test_on_a_cpu_auto_changes_nothing():
    options = inference_demo.build_parser().parse_args(["--input_path", "a", "--text_prompts", "b"])
    chosen = with_flags(choose_preset("auto", torch.device("cpu")), options)
    assert (chosen.window, chosen.prompt_batch, chosen.tiling) == (0, 4, False)


def test_flags_win_over_the_preset():
    options = inference_demo.build_parser().parse_args(
        ["--input_path", "a", "--text_prompts", "b", "--vram", "8", "--window", "0", "--no-tiling", "--text_on", "cpu"]
    )
    chosen = with_flags(choose_preset(options.vram, torch.device("cpu")), options)
    assert (chosen.window, chosen.tiling, chosen.text_on, chosen.prompt_batch) == (0, False, "cpu", 1)


def test_the_next_smaller_preset_changes_what_flags_leave_open():
    assert next_smaller(preset_named("whole"), UNSET).name == "24"
    assert next_smaller(preset_named("whole"), flags(window=81)).name == "12"
    assert next_smaller(preset_named("8"), UNSET) is None
    assert next_smaller(preset_named("24"), flags(text_on="cpu", window=81, tiling=True, prompt_batch=1)) is None


def test_memory_that_is_too_little_for_the_weights_is_tried_once_more():
    tried = []

    def run(preset):
        tried.append(preset.name)
        if len(tried) == 1:
            raise torch.OutOfMemoryError("moving the weights")
        return "done"

    assert run_within_memory(run, preset_named("24"), UNSET, lambda _: None) == "done"
    assert tried == ["24", "16"]


def test_too_little_memory_is_tried_once_more_and_no_oftener():
    tried, told = [], []

    def run(preset):
        tried.append(preset.name)
        raise TooLittleMemoryError("out of memory")

    with pytest.raises(UserError, match="with the larger preset"):
        run_within_memory(run, preset_named("16"), UNSET, lambda preset: told.append(preset.name))
    assert tried == ["16", "12"]
    assert told == ["12"]
    tried.clear()
    with pytest.raises(TooLittleMemoryError):
        run_within_memory(run, preset_named("8"), UNSET, lambda _: pytest.fail("there is nothing smaller"))
    assert tried == ["8"]


def test_weights_that_do_not_fit_into_the_machine_are_not_tried_again():
    tried = []

    def run(preset):
        tried.append(preset.name)
        raise TooLittleToLoadError("the memory of the machine is too small")

    with pytest.raises(TooLittleToLoadError):
        run_within_memory(run, preset_named("24"), UNSET, lambda _: pytest.fail("no preset makes weights smaller"))
    assert tried == ["24"]


def test_what_fits_is_run_once():
    assert run_within_memory(lambda preset: preset.name, preset_named("12"), UNSET, pytest.fail) == "12"
