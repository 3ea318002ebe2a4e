"""All 43 cases that others fail at are kept: here, or by the test that this table names."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent

ELSEWHERE = {
    17: (
        "test_features.py::test_an_interrupted_build_leaves_nothing",
        "test_features.py::test_a_killed_build_leaves_no_store_and_the_next_one_sweeps",
    ),
    18: (
        "test_splitting.py::test_live_of_frozen_is_the_network_at_every_open_cut",
        "test_splitting.py::test_every_open_cut_of_the_field_keeps_the_law_and_is_proven",
        "test_splitting.py::test_one_cut_of_the_field_keeps_the_law_and_is_proven",
    ),
    19: ("test_run.py::test_training_on_stored_rows_is_training_with_the_frozen_part_recomputed",),
    20: (
        "test_features.py::test_in_place_edits_of_what_was_read_never_change_the_store",
        "test_splitting.py::test_live_part_does_not_write_into_a_wire_that_its_first_operation_changes",
    ),
    21: ("test_features.py::test_rows_in_any_order_are_those_of_their_samples",),
    22: (
        "test_features.py::test_a_store_of_something_else_is_refused_and_kept",
        "test_splitting.py::test_fingerprint_is_that_of_what_is_frozen",
        "test_splitting.py::test_fingerprint_changes_with_what_decides_the_wires",
    ),
    23: (
        "test_features.py::test_samples_that_change_between_readings_are_refused",
        "test_features.py::test_each_view_has_its_own_rows",
    ),
    24: ("test_features.py::test_halves_take_half_the_bytes_and_say_what_they_add",),
    25: (
        "test_features.py::test_rows_that_are_not_finite_name_their_samples",
        "test_features.py::test_no_samples_are_refused",
        "test_features.py::test_a_stored_row_equals_the_recomputed_row",
        "test_features.py::test_a_damaged_store_is_refused",
    ),
    26: (
        "test_bad_input_machine.py::test_a_disk_that_fills_up_leaves_no_store",
        "test_bad_input_machine.py::test_a_store_below_a_file_is_refused",
        "test_bad_input_machine.py::test_a_store_that_another_process_is_building_is_refused",
        "test_features.py::test_a_store_that_another_process_finished_meanwhile_is_opened",
    ),
    32: (
        "test_delta.py::test_a_delta_on_its_base_is_the_tuned_network",
        "test_delta.py::test_counters_of_batch_norm_travel_as_whole_numbers",
        "test_delta.py::test_one_wrong_bit_in_a_frozen_tensor_is_refused_and_named",
    ),
    34: (
        "test_result.py::test_the_merged_network_runs_without_frostline",
        "test_delta.py::test_merged_network_loads_in_plain_torch_and_gives_the_same_outputs",
    ),
    37: ("test_tracing.py::test_stages_follow_the_run_and_not_the_registration",),
    39: (
        "test_run.py::test_the_same_arguments_give_the_same_choice_and_scores",
        "test_run.py::test_the_test_part_plays_no_part_in_the_choice",
        "test_choosing.py::test_a_tie_in_accuracy_and_loss_goes_to_what_trains_more",
        "test_choosing.py::test_the_reason_names_depth_accuracy_and_what_the_rivals_lose",
    ),
    40: (
        "test_task.py::test_one_class_is_refused",
        "test_bad_input_data.py::test_class_with_too_few_pictures_is_named_with_its_count",
    ),
}


def functions(file):
    return {node.name for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("node", sorted({node for nodes in ELSEWHERE.values() for node in nodes}))
def test_a_case_kept_elsewhere_names_a_test_that_exists(node):
    file, name = node.split("::")

    assert name in functions(TESTS / file)


def test_all_43_cases_are_kept():
    here = {
        int(number)
        for file in Path(__file__).parent.glob("test_*.py")
        for name in functions(file)
        for number in re.findall(r"^test_case_(\d\d)_", name)
    }

    assert here | ELSEWHERE.keys() == set(range(1, 44))
