"""Every check has a fault planted for it. Where the known kinds of faults are:

a corrupted tensor               `values` in test_validating.py, `distinct_units` in test_planted_faults.py
a dead branch                    `gradients` in test_planted_faults.py
TF32 on                          `exact_parts` in test_fake_gpu.py; as rounding of products in test_planted_faults.py
a NaN                            `finite` in test_planted_faults.py, and by five other checks
an aliased in-place activation   `zero_branches` in test_planted_places.py
a fused batch norm               `values` in test_validating.py; of the runtime in test_parity.py
a fallback to the CPU            `parity` in test_fake_gpu.py and test_parity.py
a nondeterministic operator      `repeat` in test_planted_faults.py, test_planted_places.py and test_fake_gpu.py
"""

from __future__ import annotations

from collections import Counter

from zero_convert import checks

from . import test_parity as parity
from . import test_planted_faults as faults
from . import test_planted_places as places
from . import test_planted_promises as promises
from . import test_planted_rounding as rounding

# Planted one by one.
ALONE = {
    "gradients": (faults.test_a_dead_branch_is_found,),
    "exact_parts": (
        faults.test_products_that_round_are_found,
        faults.test_a_kernel_that_depends_on_the_batch_is_found,
        places.test_exact_parts_finds_a_kernel_that_rounds_in_one_place,
    ),
    "skips": (
        faults.test_a_rewrite_that_changes_the_function_is_found,
        places.test_skips_finds_an_edit_that_also_changes_what_was_there,
    ),
    "channels": (faults.test_duplicate_channels_are_warned_of,),
    "coverage": (places.test_coverage_warns_of_little,),
    "training": (places.test_training_finds_a_gradient_that_is_not_finite_though_the_loss_is,),
}


def planted() -> Counter[str]:
    """Check → how many faults are planted for it."""
    found = Counter(each[1] for each in (*faults.IN_WEIGHTS, *faults.IN_FORWARD))
    found.update(each[0] for each in rounding.FAULTS.values())
    found.update(name.partition(":")[0] for name in (*promises.FAULTS, *places.FAULTS))
    found.update({"repeat": len(places.RUNS), "parity": len(parity.FAULTS)})
    found.update({check: len(tests) for check, tests in ALONE.items()})
    return found


def test_every_check_has_a_planted_fault() -> None:
    found = planted()
    assert set(found) == set(checks.FILES)
    assert found.total() >= 80
